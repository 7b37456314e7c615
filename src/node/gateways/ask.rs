//! Asks for gateways by GW-DISCOVER (protocol.md section 5): at addresses, and on the host's links.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

use tokio::net::UdpSocket;
use tokio::time::Instant;
use tracing::debug;

use crate::id::Did;
use crate::os::multicast;
use crate::os::random;
use crate::wire::discover::{DISCOVER, Discover, GROUP, Nonce, Offer, PORT};

/// How long answers are waited for.
const WAIT: Duration = Duration::from_secs(1);

/// Offers that are looked at: many gateways of a link may answer, and anybody else.
const MAX_OFFERS: usize = 16;

/// An offer, of which nothing is checked yet.
#[derive(Debug)]
pub(super) struct Offered {
    pub(super) statement: String,
    /// Where it came from; None when that is no address of frames.
    pub(super) from: Option<SocketAddr>,
}

/// Asks at `places`, and on all links if `links`.
pub(super) async fn ask(agent: Did, places: &BTreeSet<SocketAddr>, links: bool) -> Vec<Offered> {
    let mut offers = Vec::new();
    let nonce = first(&random::seed());
    let question = Discover::of(agent, nonce).encode();
    let links = match links.then(multicast::links) {
        Some(Ok(links)) => links,
        Some(Err(error)) => {
            debug!(%error, "Links not found");
            BTreeSet::new()
        }
        None => BTreeSet::new(),
    };
    let on_link = |link| SocketAddr::V6(SocketAddrV6::new(GROUP, PORT, 0, link));
    let all = places.iter().copied().chain(links.into_iter().map(on_link));
    let (v4, v6): (Vec<_>, Vec<_>) = all.partition(SocketAddr::is_ipv4);
    let any: [(SocketAddr, Vec<SocketAddr>); 2] = [
        ((Ipv4Addr::UNSPECIFIED, 0).into(), v4),
        ((Ipv6Addr::UNSPECIFIED, 0).into(), v6),
    ];
    for (any, places) in any.into_iter().filter(|(_, places)| !places.is_empty()) {
        let found = ask_from(any, &places, &question, nonce, &mut offers).await;
        if let Err(error) = found {
            debug!(%error, "Gateways not asked");
        }
    }
    offers
}

async fn ask_from(
    any: SocketAddr,
    places: &[SocketAddr],
    question: &[u8],
    nonce: Nonce,
    offers: &mut Vec<Offered>,
) -> io::Result<()> {
    let socket = UdpSocket::bind(any).await?;
    for place in places {
        if let Err(error) = socket.send_to(question, place).await {
            debug!(%place, %error, "Gateway not asked");
        }
    }
    let end = Instant::now() + WAIT;
    // One byte more, so that what is too long is seen to be.
    let mut buffer = [0; DISCOVER + 1];
    while offers.len() < MAX_OFFERS {
        let Ok(got) = tokio::time::timeout_at(end, socket.recv_from(&mut buffer)).await else {
            break;
        };
        // An address where nobody listens answers by an error of the socket.
        let Ok((length, from)) = got else { continue };
        let offer = Offer::parse(buffer.get(..length).unwrap_or_default());
        if let Some(offer) = offer.filter(|offer| offer.nonce == nonce) {
            offers.push(Offered {
                statement: offer.statement,
                from: places.contains(&from).then_some(from),
            });
        }
    }
    Ok(())
}

fn first(random: &[u8]) -> Nonce {
    let mut nonce = Nonce::default();
    for (to, from) in nonce.iter_mut().zip(random) {
        *to = *from;
    }
    nonce
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::IdentityKey;

    fn agent() -> Did {
        IdentityKey::from_seed([1; 32]).did()
    }

    async fn server() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        (socket, at)
    }

    fn offer(nonce: Nonce, statement: &str) -> Vec<u8> {
        let statement = statement.to_owned();
        Offer { nonce, statement }.encode().unwrap()
    }

    /// what answers with our nonce is taken, and nothing else.
    #[tokio::test]
    async fn only_answers_to_the_question_are_taken() {
        let (socket, at) = server().await;
        let answers = tokio::spawn(async move {
            let mut buffer = [0; 2000];
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let asked = Discover::parse(&buffer[..length]).unwrap();
            let other = [asked.nonce[0] ^ 1; 16];
            for bytes in [
                vec![],
                vec![0xa3; 1300],
                offer(other, "a.lie.again"),
                offer(asked.nonce, "a.gateway.statement"),
            ] {
                socket.send_to(&bytes, from).await.unwrap();
            }
        });

        let offers = ask(agent(), &BTreeSet::from([at]), false).await;

        answers.await.unwrap();
        assert_eq!(offers.len(), 1);
        assert_eq!(offers[0].statement, "a.gateway.statement");
        assert_eq!(offers[0].from, Some(at));
    }

    /// Whoever floods the asker is heard so long and no longer.
    #[tokio::test]
    async fn offers_are_bounded() {
        let (socket, at) = server().await;
        let answers = tokio::spawn(async move {
            let mut buffer = [0; 2000];
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let asked = Discover::parse(&buffer[..length]).unwrap();
            for _ in 0..100 {
                // It may have heard enough.
                drop(socket.send_to(&offer(asked.nonce, "x"), from).await);
            }
        });

        let offers = ask(agent(), &BTreeSet::from([at]), false).await;

        answers.await.unwrap();
        assert_eq!(offers.len(), MAX_OFFERS);
    }

    #[tokio::test]
    async fn where_nobody_answers_nothing_is_found() {
        let (socket, at) = server().await;
        drop(socket);

        assert!(ask(agent(), &BTreeSet::from([at]), false).await.is_empty());
        assert!(ask(agent(), &BTreeSet::new(), false).await.is_empty());
    }
}
