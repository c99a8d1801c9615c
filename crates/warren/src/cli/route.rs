//! `warren route`: networks behind nodes.

use clap::Subcommand;
use ipnet::IpNet;
use warren_node::fault::Fault;
use warren_types::NodeName;
use warren_types::api::{RouteAction, RouteRequest, SubnetRoute};

use super::{State, out};

#[derive(Debug, Subcommand)]
pub(super) enum RouteCommand {
    /// Offer networks behind this node; an admin has to approve each.
    Advertise {
        /// Such as 192.168.7.0/24.
        #[arg(required = true, value_name = "CIDR")]
        prefixes: Vec<IpNet>,
        #[command(flatten)]
        state: State,
    },
    /// Offer networks no more.
    Withdraw {
        /// Which.
        #[arg(required_unless_present = "all", value_name = "CIDR")]
        prefixes: Vec<IpNet>,
        /// All that this node offers.
        #[arg(long, conflicts_with = "prefixes")]
        all: bool,
        #[command(flatten)]
        state: State,
    },
    /// Let all members use a network behind a node (on an admitting node).
    Approve {
        /// The node that offers it.
        node: NodeName,
        /// The network.
        #[arg(required = true, value_name = "CIDR")]
        prefixes: Vec<IpNet>,
        #[command(flatten)]
        state: State,
    },
    /// Take an approval back (on an admitting node).
    Deny {
        /// The node that offers it.
        node: NodeName,
        /// The network.
        #[arg(required = true, value_name = "CIDR")]
        prefixes: Vec<IpNet>,
        #[command(flatten)]
        state: State,
    },
    /// List all networks that are offered, and which are in use.
    List {
        /// JSON with stable keys.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        state: State,
    },
}

/// Runs one of them.
pub(super) async fn run(command: RouteCommand) -> Result<(), Fault> {
    let (state, action, node, prefixes) = match command {
        RouteCommand::Advertise { prefixes, state } => {
            (state, RouteAction::Advertise, None, prefixes)
        }
        RouteCommand::Withdraw { prefixes, all: _, state } => {
            (state, RouteAction::Withdraw, None, prefixes)
        }
        RouteCommand::Approve { node, prefixes, state } => {
            (state, RouteAction::Approve, Some(node), prefixes)
        }
        RouteCommand::Deny { node, prefixes, state } => {
            (state, RouteAction::Deny, Some(node), prefixes)
        }
        RouteCommand::List { json, state } => return list(&state, json).await,
    };
    let request = RouteRequest {
        action,
        node: node.map(|node| node.to_string()),
        prefixes: prefixes.iter().map(ToString::to_string).collect(),
    };
    let reply = state.client().change_routes(&request).await?;
    out(match action {
        RouteAction::Advertise => "Offered to the network.\n",
        RouteAction::Withdraw => "Withdrawn.\n",
        RouteAction::Approve => "Approved; members use it as the word reaches them.\n",
        RouteAction::Deny => "Denied; members stop using it as the word reaches them.\n",
    })?;
    for hint in reply.hints {
        eprintln!("{hint}");
    }
    Ok(())
}

async fn list(state: &State, json: bool) -> Result<(), Fault> {
    let routes = state.client().routes().await?;
    if json {
        let text = serde_json::to_string_pretty(&routes).map_err(|e| Fault::internal(&e))?;
        return out(&format!("{text}\n"));
    }
    out(&render(&routes))
}

fn render(routes: &[SubnetRoute]) -> String {
    if routes.is_empty() {
        return "No node offers a network; `warren route advertise CIDR` does.\n".to_owned();
    }
    let mut rows = vec![["NETWORK", "NODE", "APPROVED", "USED", "NOTE"].map(str::to_owned)];
    for route in routes {
        let own = if route.own { " (this node)" } else { "" };
        rows.push([
            route.prefix.clone(),
            format!("{}{own}", route.node),
            route.approved.map_or("not yet", |yes| if yes { "yes" } else { "no" }).to_owned(),
            if route.used { "yes" } else { "-" }.to_owned(),
            route.note.clone().unwrap_or_default(),
        ]);
    }
    let widths: [usize; 5] = std::array::from_fn(|column| {
        rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0)
    });
    let line = |row: &[String; 5]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_says_what_is_used_and_what_is_missing() {
        let route = |node: &str, approved, used, note: Option<&str>| SubnetRoute {
            prefix: "192.168.7.0/24".into(),
            node: node.into(),
            own: node == "me",
            approved,
            used,
            note: note.map(str::to_owned),
        };
        let text = render(&[
            route("gpu-1", Some(true), true, None),
            route("gpu-2", Some(true), false, Some("gpu-1 is used, this one stands by")),
            route("me", None, false, Some("not approved yet")),
        ]);
        for part in ["gpu-1", "stands by", "me (this node)", "not yet", "NETWORK"] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(render(&[]).contains("warren route advertise"));
    }
}
