//! Answers to the local API.

use warren_types::NodeName;
use warren_types::api::{
    AddClientReply, AddClientRequest, ClientEntry, InviteReply, InviteRequest,
};

use super::clients::{self, Host};
use super::mesh::client_peer;
use super::{Daemon, Ending};
use crate::api::{ApiError, ApiRequest};
use crate::fault::Fault;
use crate::random::OsRandom;
use crate::transport::AdminError;

fn failed(fault: &Fault) -> ApiError {
    ApiError::Failed(fault.to_string())
}

impl Daemon {
    pub(super) async fn handle_request(&mut self, request: ApiRequest) {
        // A caller that went away does not want the answer; nothing to do.
        match request {
            ApiRequest::Status(reply) => {
                let _ = reply.send(Ok(self.status()));
            }
            ApiRequest::Invite(request, reply) => {
                let _ = reply.send(self.invite(&request).await);
            }
            ApiRequest::ListClients(reply) => {
                let _ = reply.send(Ok(self.list_clients()));
            }
            ApiRequest::AddClient(request, reply) => {
                let _ = reply.send(self.add_client(&request));
            }
            ApiRequest::RemoveClient(name, reply) => {
                let _ = reply.send(self.remove_client(&name));
            }
            ApiRequest::Revoke(name, reply) => {
                let _ = reply.send(self.revoke(&name).await);
            }
            ApiRequest::ExplainPath(name, reply) => {
                let _ = reply.send(self.explain_path(&name));
            }
            ApiRequest::ListRoutes(reply) => {
                let _ = reply.send(Ok(self.list_routes()));
            }
            ApiRequest::ChangeRoutes(request, reply) => {
                let _ = reply.send(self.change_routes(&request).await);
            }
            ApiRequest::Roles(reply) => {
                let _ = reply.send(Ok(self.roles_report()));
            }
            ApiRequest::ChangeRoles(change, reply) => {
                let _ = reply.send(self.change_roles(*change));
            }
            ApiRequest::Onion(reply) => {
                let _ = reply.send(Ok(self.onion_report()));
            }
            ApiRequest::Connect(request, reply) => {
                let begun = self.connect(*request);
                let _ = reply.send(begun.map(|()| self.onion_report()));
            }
            ApiRequest::Profiles(reply) => {
                let _ = reply.send(self.profiles());
            }
            ApiRequest::ChangeProfile(change, reply) => {
                let _ = reply.send(self.change_profile(*change));
            }
            ApiRequest::Disconnect(reply) => {
                let _ = reply.send(self.disconnect());
            }
            ApiRequest::RotatePath(reply) => {
                let _ = reply.send(self.rotate_path());
            }
            ApiRequest::ProvePath(reply) => self.prove_path(reply),
            ApiRequest::ExplainOnion(reply) => {
                let _ = reply.send(self.explain_onion());
            }
            ApiRequest::Ca(request, reply) => self.ca(request, reply),
            ApiRequest::Rotate(what, reply) => self.rotate(what, reply),
            ApiRequest::Leave(force, reply) => {
                let may = self.may_leave(force);
                if may.is_ok() {
                    self.ending = Some(Ending::Leave);
                }
                let _ = reply.send(may);
            }
            ApiRequest::Shutdown(reply) => {
                self.ending = Some(Ending::Stop);
                let _ = reply.send(Ok(()));
            }
            ApiRequest::Metrics(reply) => {
                let _ = reply.send(Box::new(self.metrics()));
            }
            ApiRequest::Wireguard(reply) => {
                let _ = reply.send(self.wireguard_snapshot());
            }
        }
    }

    async fn invite(&self, request: &InviteRequest) -> Result<InviteReply, ApiError> {
        if !self.control.is_admin() {
            return Err(ApiError::NotAllowed(match self.member.network.auth {
                warren_control::network::AuthKind::Certificate => {
                    self.not_admin("admit others", "invite")
                }
                other => format!(
                    "a network in {} mode has no join codes: add the new node to the \
                     configuration instead",
                    other.as_str()
                ),
            }));
        }
        let (code, _) = self
            .control
            .invite(request.expires_s, request.uses)
            .await
            .map_err(|e| ApiError::Failed(e.to_string()))?;
        Ok(InviteReply { code, expires_s: request.expires_s, uses: request.uses })
    }

    fn list_clients(&self) -> Vec<ClientEntry> {
        self.mesh
            .clients()
            .iter()
            .map(|client| ClientEntry {
                name: client.name.to_string(),
                public_key: client.public_key,
                addresses: client.addresses.clone(),
            })
            .collect()
    }

    fn name_taken(&self, name: &NodeName) -> bool {
        *name == self.member.name
            || self.mesh.by_name(name).is_some()
            || self.mesh.clients().iter().any(|c| c.name == *name)
            || self.mesh.members().any(|v| v.clients.iter().any(|c| c.name == *name))
    }

    fn add_client(&mut self, request: &AddClientRequest) -> Result<AddClientReply, ApiError> {
        let endpoint = self
            .config
            .endpoints
            .first()
            .cloned()
            // Clients travel: what reaches us from anywhere comes first.
            .or_else(|| self.surroundings.external().map(Into::into))
            .or_else(|| self.endpoints.first().and_then(|a| a.to_string().parse().ok()));
        let host = Host {
            node: &self.member.name,
            network: &self.member.network.name,
            network_id: self.member.network.id,
            key: self.engine.public_key(),
            prefixes: &self.prefixes,
            endpoint,
            names: self.names.server(),
        };
        let (client, reply) = clients::create(
            request,
            &host,
            self.mesh.clients().len(),
            |name| self.name_taken(name),
            |address| {
                self.member.addresses.contains(&address)
                    || self.mesh.members().any(|view| {
                        view.addresses.contains(&address)
                            || view.clients.iter().any(|c| c.addresses.contains(&address))
                    })
                    || self.mesh.clients().iter().any(|c| c.addresses.contains(&address))
            },
        )?;
        let mut clients = self.mesh.clients().to_vec();
        clients.push(client.clone());
        // Stored first: a client that was told its keys must survive a restart.
        self.store.save_clients(&clients).map_err(|e| failed(&e))?;
        self.mesh.set_clients(clients);
        self.engine.upsert_peer(client_peer(&client), self.now(), &mut OsRandom);
        self.announce();
        Ok(reply)
    }

    fn remove_client(&mut self, name: &NodeName) -> Result<(), ApiError> {
        let mut clients = self.mesh.clients().to_vec();
        let before = clients.len();
        clients.retain(|c| c.name != *name);
        if clients.len() == before {
            return Err(ApiError::NotFound(format!(
                "this node has no WireGuard client named `{name}`: `warren wg list` shows them"
            )));
        }
        self.store.save_clients(&clients).map_err(|e| failed(&e))?;
        for key in self.mesh.set_clients(clients) {
            self.engine.remove_peer(&key);
        }
        self.announce();
        Ok(())
    }

    async fn revoke(&mut self, name: &NodeName) -> Result<(), ApiError> {
        if *name == self.member.name {
            return Err(ApiError::Conflict(
                "a node cannot revoke itself: use `warren leave`".to_owned(),
            ));
        }
        if !self.control.is_admin() {
            return Err(ApiError::NotAllowed(self.not_admin("revoke others", "revoke")));
        }
        match self.control.revoke(name.clone()).await {
            Ok(_) => Ok(()),
            Err(error @ AdminError::UnknownName(_)) => Err(ApiError::NotFound(error.to_string())),
            Err(error) => Err(ApiError::Failed(error.to_string())),
        }
    }

    /// Why this node may not, and who may.
    fn not_admin(&self, what: &str, command: &str) -> String {
        let admins = self.mesh.members().filter(|view| view.descriptor.body.admin);
        let names: Vec<&str> = admins.map(|view| view.name.as_str()).collect();
        let who = match names.as_slice() {
            [] => "an admin (`warren ca list`)".to_owned(),
            names => names.join(" or "),
        };
        format!(
            "this node cannot {what}: run `warren {command}` on {who}, or let the holder of the \
             root make this node an admin with `warren ca delegate {}`",
            self.member.name
        )
    }

    /// Tells the others where we are and which clients are behind us.
    pub(super) fn announce(&mut self) {
        self.names.set_own(&self.member, self.mesh.clients());
        let own = super::launch::own_descriptor(
            &self.member,
            self.engine.public_key(),
            &self.mesh,
            &self.told,
            &self.subnets.advertised,
            self.tcp_port,
            &self.roles,
        );
        let control = self.control.clone();
        tokio::spawn(async move { control.set_own_descriptor(own).await });
    }
}
