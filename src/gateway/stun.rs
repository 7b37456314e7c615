//! Pure: the gateway's STUN server, on one endpoint of each IP version or on four (RFC 5780).

use std::{collections::VecDeque, net::SocketAddr, time::Instant};

use crate::engine::limits::{Limits, Source};
use crate::wire::carrier::is_carrier;
use crate::wire::drop::DropReason;
use crate::wire::stun::{self, Change, Message, Origin};

/// Answers a second for one source (protocol.md section 4): forging it pays nobody.
const PER_SECOND: u32 = 10;

/// Sources told apart; the others share one limit.
const MAX_SOURCES: usize = 16_384;

/// Answers waiting to be sent; the shell empties the queue after every input.
const MAX_QUEUED: usize = 256;

/// Answers STUN requests.
#[derive(Debug)]
pub(super) struct StunServer {
    limits: Limits,
    /// By place and IP version; at most four of each version.
    endpoints: Vec<(Change, SocketAddr)>,
    queued: VecDeque<(Change, SocketAddr, Vec<u8>)>,
}

impl StunServer {
    pub(super) fn new() -> Self {
        Self {
            limits: Limits::new(PER_SECOND, PER_SECOND, MAX_SOURCES),
            endpoints: Vec::new(),
            queued: VecDeque::new(),
        }
    }

    pub(super) fn set_endpoints(&mut self, endpoints: &[(Change, SocketAddr)]) {
        self.endpoints = endpoints.to_vec();
    }

    /// Tells whoever asks, within the limit of its source, where it was seen, and returns from which
    /// place the answer goes.
    pub(super) fn answer(
        &mut self,
        place: Change,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(Change, Vec<u8>), DropReason> {
        let request = match stun::parse(bytes) {
            // There is no endpoint to tell of.
            Some(Message::Request(_)) if is_carrier(from) => {
                return Err(DropReason::DatagramUnknown);
            }
            Some(Message::Request(request)) => request,
            Some(Message::Refused(_) | Message::Success { .. }) | None => {
                return Err(DropReason::DatagramMalformed);
            }
        };
        if !self.limits.take(Source::of(from), now) {
            return Err(DropReason::StunLimited);
        }
        let way = place.then(request.change());
        let is_there = request.change() == Change::NONE || self.at(way, from).is_some();
        if !is_there {
            return Ok((place, request.refuse_change()));
        }
        // RFC 5780 section 7.4: told if, and only if, there is a second address.
        let origin = Origin {
            own: self.at(way, from).filter(|at| !at.ip().is_unspecified()),
            other: self.at(place.then(Change::BOTH), from),
        };
        Ok((way, request.answer(from, origin)))
    }

    /// Lets an answer wait for the socket it goes by.
    pub(super) fn queue(&mut self, place: Change, to: SocketAddr, answer: Vec<u8>) {
        if self.queued.len() < MAX_QUEUED {
            self.queued.push_back((place, to, answer));
        }
    }

    pub(super) fn poll(&mut self) -> Option<(Change, SocketAddr, Vec<u8>)> {
        self.queued.pop_front()
    }

    /// Returns the second port at the address that a datagram from there comes to; 0 when there is none.
    pub(super) fn other_port(&self, from: SocketAddr) -> u16 {
        let other = self.at(Change::PORT, from).filter(|_| !is_carrier(from));
        other.map_or(0, |at| at.port())
    }

    fn at(&self, place: Change, like: SocketAddr) -> Option<SocketAddr> {
        let is_it = |(at, endpoint): &&(Change, SocketAddr)| {
            *at == place && endpoint.is_ipv4() == like.is_ipv4()
        };
        self.endpoints
            .iter()
            .find(is_it)
            .map(|(_, endpoint)| *endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const ADDRESS: Change = Change {
        address: true,
        port: false,
    };

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    /// A server with all four endpoints of IPv4, and two ports of any address of IPv6.
    fn server() -> StunServer {
        let mut server = StunServer::new();
        server.set_endpoints(&[
            (Change::NONE, at("198.51.100.1:1")),
            (Change::PORT, at("198.51.100.1:2")),
            (ADDRESS, at("198.51.100.2:1")),
            (Change::BOTH, at("198.51.100.2:2")),
            (Change::NONE, at("[::]:1")),
            (Change::PORT, at("[::]:2")),
        ]);
        server
    }

    /// Asks one endpoint, and returns from which place is answered and what of the server is told.
    fn ask(place: Change, from: &str, change: Change) -> (Change, Option<Origin>) {
        let request = stun::request_from(&[7; 12], change);
        let answer = server().answer(place, at(from), &request, start());
        let (way, bytes) = answer.unwrap();
        let told = match stun::parse(&bytes) {
            Some(Message::Success { mapped, origin, .. }) => {
                assert_eq!(mapped, at(from));
                Some(origin)
            }
            Some(Message::Refused(_)) => None,
            other => panic!("{other:?}"),
        };
        (way, told)
    }

    /// RFC 5780 section 6.1, table 1: from which endpoint the answer goes, and which other one is told.
    #[test]
    fn an_answer_comes_from_the_endpoint_that_was_asked_for() {
        let from = "192.0.2.1:1000";
        let places = [Change::NONE, Change::PORT, ADDRESS, Change::BOTH];
        for place in places {
            for change in places {
                let (way, told) = ask(place, from, change);

                assert_eq!(way, place.then(change));
                let expected = Origin {
                    own: server().at(way, at(from)),
                    other: server().at(place.then(Change::BOTH), at(from)),
                };
                assert_eq!(told, Some(expected), "{place:?} {change:?}");
            }
        }
    }

    /// RFC 5780 section 6.1: whoever asks for an answer from where the server is not is refused.
    #[test]
    fn an_endpoint_that_is_not_there_is_refused_and_not_told() {
        let from = "[2001:db8::1]:1000";

        assert_eq!(ask(Change::NONE, from, ADDRESS), (Change::NONE, None));
        assert_eq!(ask(Change::PORT, from, Change::BOTH), (Change::PORT, None));
        let (way, told) = ask(Change::NONE, from, Change::PORT);
        assert_eq!((way, told), (Change::PORT, Some(Origin::default())));
    }

    #[test]
    fn all_endpoints_of_a_server_share_the_limit_of_a_source() {
        let (mut server, now) = (server(), start());
        let request = stun::request(&[7; 12]);
        let places = [Change::NONE, Change::PORT, ADDRESS, Change::BOTH];
        let mut ask = |place, port| {
            let from = SocketAddr::new("192.0.2.1".parse().unwrap(), port);
            server.answer(place, from, &request, now).is_ok()
        };

        let answered = (0..40).filter(|n| ask(places[n % 4], *n as u16 + 1));

        assert_eq!(answered.count(), PER_SECOND as usize);
        let later = now + Duration::from_millis(150);
        let again = server.answer(Change::NONE, at("192.0.2.1:9"), &request, later);
        assert!(again.is_ok());
    }
}
