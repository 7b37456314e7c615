//! How a NAT behaves, by RFC 5780: what is asked, and what the answers mean.

use std::{io, net::SocketAddr};

use crate::node::netcheck::ask::{Answer, Asker, Kind, Outcome, Question};
use crate::wire::api::local::{NatFiltering, NatMappingKind};
use crate::wire::stun::Change;

/// Lengths of IP packets that are tried: what links, tunnels and providers commonly leave.
const SIZES: [u16; 8] = [1500, 1492, 1480, 1460, 1420, 1400, 1360, 1280];

/// Asks a server of RFC 5780 how we are seen from its other endpoints; None without one that tells.
///
/// `seen` is what others said, asked by the same socket.
pub(super) async fn mapping(
    asker: &Asker,
    server: Option<(SocketAddr, Answer)>,
    seen: &[(SocketAddr, SocketAddr)],
) -> Option<NatMappingKind> {
    let Some((at, first)) = server else {
        return compared(seen);
    };
    let Some(other) = first.origin.other.filter(|other| other.ip() != at.ip()) else {
        return compared(seen);
    };
    let second = ask(asker, SocketAddr::new(other.ip(), at.port())).await;
    let Some(second) = second else {
        return compared(seen);
    };
    if second.mapped == first.mapped {
        return Some(NatMappingKind::EndpointIndependent);
    }
    let third = ask(asker, other).await;
    Some(third.map_or(NatMappingKind::EndpointDependent, |third| {
        if third.mapped == second.mapped {
            NatMappingKind::AddressDependent
        } else {
            NatMappingKind::AddressAndPortDependent
        }
    }))
}

async fn ask(asker: &Asker, to: SocketAddr) -> Option<Answer> {
    let outcomes = asker.ask(&[Question::whereabouts(to)]).await;
    outcomes.first().and_then(Outcome::answer)
}

/// Returns how a NAT maps by what two or more servers see; None when they tell too little.
fn compared(seen: &[(SocketAddr, SocketAddr)]) -> Option<NatMappingKind> {
    let pairs = || {
        let others = |n: usize| seen.iter().skip(n + 1);
        let of = move |(n, one)| others(n).map(move |other| (one, other));
        seen.iter().enumerate().flat_map(of)
    };
    let is_same_host =
        |(one, other): &(&(SocketAddr, _), &(SocketAddr, _))| one.0.ip() == other.0.ip();
    let differs = |(one, other): &(&(_, SocketAddr), &(_, SocketAddr))| one.1 != other.1;
    if pairs().filter(is_same_host).any(|pair| differs(&pair)) {
        Some(NatMappingKind::AddressAndPortDependent)
    } else if pairs().any(|pair| differs(&pair)) {
        Some(NatMappingKind::EndpointDependent)
    } else if pairs().any(|pair| !is_same_host(&pair)) {
        Some(NatMappingKind::EndpointIndependent)
    } else {
        None
    }
}

/// Finds out whom a NAT lets in, by a socket that spoke to nobody yet.
pub(super) async fn filtering(server: SocketAddr) -> io::Result<Option<NatFiltering>> {
    let asker = Asker::open(server.is_ipv4())?;
    if ask(&asker, server).await.is_none() {
        return Ok(None);
    }
    let from = |change| Question {
        to: server,
        kind: Kind::From(change),
    };
    let outcomes = asker.ask(&[from(Change::BOTH), from(Change::PORT)]).await;
    Ok(match outcomes[..] {
        [both, port] => filters(both, port),
        _ => None,
    })
}

/// Returns what it means that answers from another address and port, and from another port alone,
/// came or not.
const fn filters(both: Outcome, port: Outcome) -> Option<NatFiltering> {
    match (both, port) {
        (Outcome::Answered(_), _) => Some(NatFiltering::EndpointIndependent),
        (Outcome::Silent, Outcome::Answered(_)) => Some(NatFiltering::AddressDependent),
        (Outcome::Refused, Outcome::Answered(_)) => Some(NatFiltering::NotPortDependent),
        (Outcome::Silent | Outcome::Refused, Outcome::Silent) => {
            Some(NatFiltering::AddressAndPortDependent)
        }
        (Outcome::Silent | Outcome::Refused, Outcome::Refused) => None,
    }
}

/// Finds out whether the NAT turns back what one host behind it sends to the outer endpoint of another.
pub(super) async fn hairpin(server: SocketAddr) -> io::Result<Option<bool>> {
    let asker = Asker::open(server.is_ipv4())?;
    let other = Asker::open(server.is_ipv4())?;
    let Some(answer) = ask(&asker, server).await else {
        return Ok(None);
    };
    Ok(Some(asker.hears(&other, answer.mapped).await))
}

/// Returns the length of the largest IP packet that reaches a gateway; None when none is answered.
pub(super) async fn mtu(gateway: SocketAddr) -> io::Result<Option<u16>> {
    let asker = Asker::open(gateway.is_ipv4())?;
    // Of IP and UDP.
    let headers = if gateway.is_ipv4() { 28 } else { 48 };
    let questions = SIZES.map(|size| Question {
        to: gateway,
        kind: Kind::Length(usize::from(size) - headers),
    });
    let outcomes = asker.ask(&questions).await;
    let mut arrived = SIZES.iter().zip(&outcomes);
    let largest = arrived.find(|(_, outcome)| **outcome != Outcome::Silent);
    Ok(largest.map(|(size, _)| *size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::Origin;
    use std::time::Duration;

    fn seen(pairs: &[(&str, &str)]) -> Vec<(SocketAddr, SocketAddr)> {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let all = pairs.iter().map(|(server, at)| (parse(server), parse(at)));
        all.collect()
    }

    /// RFC 4787 section 4.1: what two servers say tells how a NAT maps, and one alone does not.
    #[test]
    fn servers_without_other_endpoints_are_compared() {
        let (one, two) = ("198.51.100.1:1", "198.51.100.2:1");
        let (same_host, at, other) = ("198.51.100.1:2", "192.0.2.1:5", "192.0.2.1:6");
        let cases: [(&[(&str, &str)], Option<NatMappingKind>); 6] = [
            (&[], None),
            (&[(one, at)], None),
            (&[(one, at), (same_host, at)], None),
            (
                &[(one, at), (two, at)],
                Some(NatMappingKind::EndpointIndependent),
            ),
            (
                &[(one, at), (two, other)],
                Some(NatMappingKind::EndpointDependent),
            ),
            (
                &[(one, at), (two, at), (same_host, other)],
                Some(NatMappingKind::AddressAndPortDependent),
            ),
        ];
        for (pairs, expected) in cases {
            assert_eq!(compared(&seen(pairs)), expected, "{pairs:?}");
        }
    }

    /// RFC 5780 section 4.4, and what a server with one address leaves open.
    #[test]
    fn whose_answers_come_tells_how_a_nat_filters() {
        let answered = Outcome::Answered(Answer {
            mapped: "192.0.2.1:5".parse().unwrap(),
            origin: Origin::default(),
            rtt: Duration::ZERO,
        });
        let (silent, refused) = (Outcome::Silent, Outcome::Refused);
        let cases = [
            (answered, answered, Some(NatFiltering::EndpointIndependent)),
            (silent, answered, Some(NatFiltering::AddressDependent)),
            (silent, silent, Some(NatFiltering::AddressAndPortDependent)),
            (refused, answered, Some(NatFiltering::NotPortDependent)),
            (refused, silent, Some(NatFiltering::AddressAndPortDependent)),
            (refused, refused, None),
        ];
        for (both, port, expected) in cases {
            assert_eq!(filters(both, port), expected, "{both:?} {port:?}");
        }
    }
}
