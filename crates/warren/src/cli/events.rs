//! `warren events`.

use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use warren_node::fault::{Fault, FaultKind};
use warren_types::api::Event;

use super::{State, out, story};

/// The desktop's own program for notifications (freedesktop.org).
const NOTIFIER: &str = "notify-send";

/// Prints what happened; with `follow`, until the daemon or the reader ends. With
/// `notify`, what happens to the onion path from now on is shown on the desktop, too.
pub(super) async fn show(
    state: &State,
    follow: bool,
    json: bool,
    notify: bool,
) -> Result<(), Fault> {
    if notify {
        // Before anything happens that somebody relies on hearing of.
        notifier(&["--version"])?;
    }
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut stream = state.client().events(follow).await?;
    while let Some(record) = stream.next().await? {
        let line = if json {
            serde_json::to_string(&record).map_err(|e| Fault::internal(&e))?
        } else {
            story::dated(record.at, &record.event)
        };
        out(&format!("{line}\n"))?;
        if notify
            && record.at >= begun
            && let Some(urgency) = urgency(&record.event)
        {
            let urgency = format!("--urgency={urgency}");
            notifier(&["--app-name=Warren", &urgency, "Warren", &story::line(&record.event)])?;
        }
    }
    Ok(())
}

/// How urgent it is that somebody sees it on the desktop; `None` for what is no
/// change of the onion path.
fn urgency(event: &Event) -> Option<&'static str> {
    match event {
        Event::OnionConnected { .. } | Event::OnionMoved { .. } => Some("low"),
        Event::OnionDisconnected {} => Some("normal"),
        Event::OnionInterrupted { .. } | Event::OnionExitLost { .. } => Some("critical"),
        _ => None,
    }
}

fn notifier(arguments: &[&str]) -> Result<(), Fault> {
    let mut command = Command::new(NOTIFIER);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let failed = |why: String| {
        Fault::new(FaultKind::Resource, format!("cannot show notifications with {NOTIFIER}: {why}"))
            .remedy(
                "install it (package libnotify-bin of Debian and Ubuntu), or leave out --notify",
            )
    };
    let status = command.status().map_err(|error| failed(error.to_string()))?;
    if status.success() { Ok(()) } else { Err(failed(status.to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_the_path_are_for_the_desktop_and_no_others() {
        let hops = || vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(urgency(&Event::OnionConnected { path: hops(), user: None }), Some("low"));
        let lost = Event::OnionExitLost { exit: "b".to_owned(), user: None };
        assert_eq!(urgency(&lost), Some("critical"));
        assert_eq!(urgency(&Event::NodeAdmitted { name: "a".to_owned() }), None);
    }
}
