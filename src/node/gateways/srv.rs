//! Asks the host's nameservers which hosts are gateways of a domain.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::net::UdpSocket;
use tokio::time::timeout;
use tracing::debug;

use crate::os::dns;
use crate::os::random;
use crate::wire::srv::{MAX_HOSTS, Question};

/// How long one nameserver has.
const TRY: Duration = Duration::from_secs(2);

/// Longest answer: eight hosts fit into a part of it.
const LONGEST: usize = 4096; // bytes

/// Returns the gateways of `domain` as `host:port`, best first; none where nobody says so.
pub(super) async fn hosts(domain: &str) -> Vec<String> {
    let questions = Question::of(domain);
    if questions.is_empty() {
        debug!(domain, "No domain to look for gateways of");
    }
    let mut hosts = Vec::new();
    for question in &questions {
        for host in answers(question).await {
            if !hosts.contains(&host) && hosts.len() < MAX_HOSTS {
                hosts.push(host);
            }
        }
    }
    hosts
}

/// Returns what the first nameserver says that answers.
async fn answers(question: &Question) -> Vec<String> {
    for server in dns::nameservers() {
        match timeout(TRY, ask(server, question)).await {
            Ok(Ok(hosts)) => return hosts,
            Ok(Err(error)) => debug!(%server, %error, "A nameserver cannot be asked"),
            Err(_elapsed) => debug!(%server, "A nameserver does not answer"),
        }
    }
    Vec::new()
}

async fn ask(server: SocketAddr, question: &Question) -> io::Result<Vec<String>> {
    let any: SocketAddr = if server.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let [high, low, ..] = random::seed();
    let id = u16::from_be_bytes([high, low]);
    let message = question.encode(id);
    let message = message.ok_or_else(|| io::Error::other("the question cannot be written"))?;
    let socket = UdpSocket::bind(any).await?;
    // Connected, so that only this nameserver is heard.
    socket.connect(server).await?;
    socket.send(&message).await?;
    let mut buffer = vec![0; LONGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if let Some(hosts) = question.hosts(id, answer) {
            return Ok(hosts);
        }
    }
}
