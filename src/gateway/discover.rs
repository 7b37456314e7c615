//! Pure: what a gateway says to who looks for one.

use std::{net::SocketAddr, time::Instant};

use crate::engine::limits::{Limits, Source};
use crate::wire::discover::{Discover, Offer};
use crate::wire::drop::DropReason;

/// Offers a second to one source, and at once: a host asks for each of its agents.
const PER_SECOND: u32 = 2;
const BURST: u32 = 10;

/// Sources told apart; the others share one limit.
const MAX_SOURCES: usize = 4096;

/// Answers GW-DISCOVER by the gateway's statement.
#[derive(Debug)]
pub(crate) struct Discovery {
    /// None before the registry gave it.
    statement: Option<String>,
    limits: Limits,
}

impl Discovery {
    pub(crate) fn new() -> Self {
        Self {
            statement: None,
            limits: Limits::new(PER_SECOND, BURST, MAX_SOURCES),
        }
    }

    /// Takes the gateway's own statement.
    pub(crate) fn set_statement(&mut self, text: String) {
        self.statement = Some(text);
    }

    /// Returns the answer to a datagram, which is no longer than that, or why there is none.
    pub(crate) fn answer(
        &mut self,
        from: SocketAddr,
        bytes: &[u8],
        now: Instant,
    ) -> Result<Vec<u8>, DropReason> {
        let asked = Discover::parse(bytes).ok_or(DropReason::DatagramMalformed)?;
        if !self.limits.take(Source::of(from), now) {
            return Err(DropReason::DiscoverLimited);
        }
        let statement = self.statement.clone().ok_or(DropReason::DiscoverUnready)?;
        let nonce = asked.nonce;
        let offer = Offer { nonce, statement }.encode();
        offer.ok_or(DropReason::DiscoverUnready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::IdentityKey;
    use std::time::Duration;

    #[expect(clippy::disallowed_methods, reason = "tests need an epoch")]
    fn start() -> Instant {
        Instant::now()
    }

    fn question(nonce: u8) -> Vec<u8> {
        Discover::of(IdentityKey::from_seed([1; 32]).did(), [nonce; 16]).encode()
    }

    fn ready() -> Discovery {
        let mut discovery = Discovery::new();
        discovery.set_statement("a.statement.text".to_owned());
        discovery
    }

    /// who asks is told the statement, under the nonce it chose.
    #[test]
    fn who_asks_is_told_the_statement() {
        let (mut discovery, from) = (ready(), "192.0.2.1:9".parse().unwrap());

        let answer = discovery.answer(from, &question(5), start()).unwrap();

        let offer = Offer::parse(&answer).unwrap();
        assert_eq!(
            (offer.nonce, &*offer.statement),
            ([5; 16], "a.statement.text")
        );
        assert!(answer.len() <= question(5).len());
    }

    #[test]
    fn one_source_is_told_so_often_and_no_more() {
        let (mut discovery, now) = (ready(), start());
        let (from, other) = (
            "192.0.2.1:9".parse().unwrap(),
            "192.0.2.2:9".parse().unwrap(),
        );
        let told = |discovery: &mut Discovery, from, now| {
            let answers = (0..100).map(|n| discovery.answer(from, &question(n), now));
            answers.filter(Result::is_ok).count()
        };

        assert_eq!(told(&mut discovery, from, now), 10);
        assert_eq!(told(&mut discovery, other, now), 10);
        assert_eq!(told(&mut discovery, from, now + Duration::from_secs(1)), 2);
        assert_eq!(
            discovery.answer(from, &question(1), now),
            Err(DropReason::DiscoverLimited)
        );
    }

    #[test]
    fn nothing_is_said_without_a_statement_that_fits() {
        let (mut discovery, from) = (Discovery::new(), "[2001:db8::1]:9".parse().unwrap());
        let unready = Err(DropReason::DiscoverUnready);

        assert_eq!(discovery.answer(from, &question(1), start()), unready);
        discovery.set_statement("x".repeat(1181));
        assert_eq!(discovery.answer(from, &question(1), start()), unready);
        let short = &question(1)[..100];
        let malformed = Err(DropReason::DatagramMalformed);
        assert_eq!(discovery.answer(from, short, start()), malformed);
    }
}
