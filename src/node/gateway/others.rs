//! Where the other gateways of the domain are: their statements name hosts, the server wants addresses.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::debug;

use crate::gateway::server::GatewayCommand;
use crate::id::DomainPrefix;
use crate::statement::{Gateway, Statement};

/// Longest look-up of one host name.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Addresses taken from one host name.
const MAX_ADDRESSES: usize = 8;

/// Looks up where gateways are and tells the server, each as soon as it is known.
pub(super) async fn introduce(
    gateways: Vec<Statement<Gateway>>,
    domain: DomainPrefix,
    commands: mpsc::Sender<GatewayCommand>,
) {
    for statement in gateways {
        let endpoints = endpoints(&statement, domain).await;
        let command = GatewayCommand::AddGateway(Box::new(statement), endpoints);
        if commands.send(command).await.is_err() {
            return;
        }
    }
}

/// Returns where a gateway is, by what its statement names.
async fn endpoints(statement: &Statement<Gateway>, domain: DomainPrefix) -> Vec<SocketAddr> {
    let mut endpoints = Vec::new();
    for host in &statement.claims().udp {
        let found = tokio::time::timeout(LOOK_UP, tokio::net::lookup_host(host)).await;
        match found {
            Ok(Ok(addresses)) => endpoints.extend(addresses.take(MAX_ADDRESSES)),
            Ok(Err(error)) => debug!(%host, %error, "Gateway host not found"),
            Err(_elapsed) => debug!(%host, "Looking up the gateway host took too long"),
        }
    }
    // The underlay is never reached through the overlay.
    endpoints.retain(|endpoint: &SocketAddr| match endpoint.ip() {
        std::net::IpAddr::V4(_) => true,
        std::net::IpAddr::V6(address) => !domain.contains(address),
    });
    endpoints
}
