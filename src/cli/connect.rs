use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    str::FromStr,
    time::Duration,
};

use clap::Args;
use tokio::net::{TcpSocket, TcpStream};

use crate::cli::AgentArg;
use crate::cli::client::Client;
use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::values::duration;
use crate::id::OverlayIp;
use crate::os::stdio::{self, StdioError};
use crate::statement::Protocol;
use crate::wire::api::local::{BIND_HINT, PathQuery, PathReport, Status, Whois, WhoisQuery};

/// Join standard input and output to a TCP port of an agent, as the ProxyCommand of ssh does
#[derive(Args, Debug)]
pub(super) struct ConnectArgs {
    /// The agent, by its short or full name, and its port: b:22 or b.acme.agent:22
    #[arg(value_name = "NAME:PORT")]
    target: Target,

    /// Wait this long for the connection, as 5s
    #[arg(short, long, value_name = "TIME", default_value = "20s", value_parser = duration)]
    timeout: Duration,

    #[command(flatten)]
    of: AgentArg,
}

/// A port of an agent, `b:22`.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Target {
    name: String,
    port: u16,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(':');
        let parts = parts.and_then(|(name, port)| Some((name, port.parse().ok()?)));
        match parts {
            Some((name, port)) if port > 0 && !name.is_empty() => Ok(Self {
                name: name.to_owned(),
                port,
            }),
            Some(_) | None => Err("expected NAME:PORT, as b:22".to_owned()),
        }
    }
}

impl ConnectArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let port = self.target.port;
        let found = self.find(&context.client()?).await?;
        let connecting = tokio::time::timeout(self.timeout, found.connect(port));
        let connected = match connecting.await {
            Ok(connected) => connected,
            Err(_elapsed) => Err(ErrorKind::TimedOut.into()),
        };
        let stream = connected.map_err(|error| found.failure(port, &error))?;
        stdio::join(stream).await.map_err(|error| match error {
            // Whoever reads has enough; that is how `| head` ends.
            StdioError::Output(why) if why.kind() == ErrorKind::BrokenPipe => Failure::closed(),
            StdioError::Connection(_) => {
                Failure::new(Exit::Unreachable, format!("{}: {error}", found.name))
            }
            StdioError::Input(_) | StdioError::Output(_) => {
                Failure::new(Exit::Failed, error.to_string())
            }
        })
    }

    /// Finds both ends, and whether consent covers the port.
    async fn find(&self, client: &Client) -> Result<Found, Failure> {
        let query = PathQuery {
            agent: self.of.agent.clone(),
            name: self.target.name.clone(),
        };
        let peer = client.get::<PathReport>("/v1/path", &query).await?;
        let query = WhoisQuery {
            address: peer.address.ip(),
            end: None,
        };
        let whois = client.get::<Whois>("/v1/whois", &query).await?;
        let (name, port) = (peer.name, self.target.port);
        let scope = whois.outbound;
        if !scope
            .as_ref()
            .is_some_and(|scope| scope.allows(Protocol::Tcp, port))
        {
            let what = format!("{name} has not consented to tcp/{port}");
            let hint = format!(
                "on its side: agentnet trust approve {} --allow tcp/{port}",
                peer.agent
            );
            return Err(Failure::new(Exit::Denied, what).hint(hint));
        }
        let status = client.get::<Status>("/v1/status", &()).await?;
        let own = status.agents.into_iter().find(|own| own.name == peer.agent);
        let gone = || Failure::new(Exit::NotFound, format!("{} is gone", peer.agent));
        Ok(Found {
            name,
            local: own.ok_or_else(gone)?.address,
            peer: peer.address,
        })
    }
}

/// Both ends of the connection to make.
struct Found {
    /// Full name of the other one.
    name: String,
    local: OverlayIp,
    peer: OverlayIp,
}

impl Found {
    async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let socket = TcpSocket::new_v6()?;
        // Of several agents the one that is meant.
        socket.bind(SocketAddr::from((self.local.ip(), 0)))?;
        socket
            .connect(SocketAddr::from((self.peer.ip(), port)))
            .await
    }

    fn failure(&self, port: u16, error: &io::Error) -> Failure {
        let name = &self.name;
        let (what, hint) = match Some(error.kind()) {
            Some(ErrorKind::ConnectionRefused) => (
                format!("nobody listens on tcp/{port} of {name}"),
                format!("{BIND_HINT}, or pass it on there with agentnet serve tcp/{port}"),
            ),
            Some(ErrorKind::TimedOut) => (
                format!("no answer from tcp/{port} of {name}"),
                format!("its node may be down: agentnet ping {name}"),
            ),
            Some(ErrorKind::ConnectionReset) => (
                format!("{name}: the connection broke: {error}"),
                "the server that the port leads to there may be down".to_owned(),
            ),
            Some(ErrorKind::AddrNotAvailable) => (
                format!(
                    "cannot connect to {name}: {} is no address here",
                    self.local
                ),
                "run it where the daemon runs, in the same network namespace".to_owned(),
            ),
            _ => (
                format!("cannot connect to tcp/{port} of {name}: {error}"),
                format!("agentnet path {name} shows the ways to it"),
            ),
        };
        Failure::new(Exit::Unreachable, what).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_name_and_a_port() {
        for (text, name, port) in [
            ("b:22", "b", 22),
            ("b.acme.agent:65535", "b.acme.agent", 65535),
        ] {
            let target = text.parse::<Target>().unwrap();
            assert_eq!((target.name.as_str(), target.port), (name, port));
        }
        for text in ["b", "b:", ":22", "b:0", "b:65536", "b:ssh"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
