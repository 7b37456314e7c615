use std::{net::SocketAddr, time::Instant};

use crate::engine::path::{Path, PathAgent, candidate, pair::Pair};
use crate::wire::candidate::{Candidate, Candidates};

/// Silent endpoints that are remembered after the peer no longer names them.
const MAX_SILENT: usize = 64;

impl PathAgent {
    /// Takes the peer's candidates; older and repeated lists change nothing.
    pub fn handle_candidates(&mut self, remote: &Candidates, now: Instant) {
        if !self.mode.seeks() || self.remote_seq.is_some_and(|seq| remote.seq <= seq) {
            return;
        }
        // Who tells has a use for the session.
        self.rouse(now);
        self.remote_seq = Some(remote.seq);
        let mut list = candidate::clean(&remote.list);
        // One's own endpoint would answer: with silence, from us.
        list.retain(|c| !self.local.iter().any(|own| own.endpoint == c.endpoint));
        self.unlist(&list, now);
        for candidate in list {
            let path = Path::Direct(candidate.endpoint);
            if let Some(pair) = self.pairs.get_mut(&path) {
                pair.list(&candidate);
                if pair.has_answered && !pair.is_alive() {
                    pair.want(now);
                }
                continue;
            }
            let tries = self.recall(candidate.endpoint);
            let pair = Pair::listed(&candidate, self.number(), tries, now);
            self.pairs.insert(path, pair);
        }
        self.review_meeting(now);
    }

    /// Removes what the peer no longer names; silence is remembered.
    fn unlist(&mut self, list: &[Candidate], now: Instant) {
        let named =
            |path: &Path| matches!(path, Path::Direct(e) if list.iter().any(|c| c.endpoint == *e));
        let gone = self.pairs.iter().filter(|(p, q)| q.is_listed && !named(p));
        for path in gone.map(|(path, _)| *path).collect::<Vec<_>>() {
            if Some(path) == self.current {
                // The peer moved. Its old endpoint stays as one to be proven again.
                self.distrust(path, now);
            }
            let Some(pair) = self.pairs.get_mut(&path) else {
                continue;
            };
            pair.is_listed = false;
            if !pair.has_answered {
                let tries = pair.tries();
                self.pairs.remove(&path);
                self.remember(path, tries);
            }
        }
        self.bound_learned();
    }

    fn remember(&mut self, path: Path, tries: u8) {
        if let Path::Direct(endpoint) = path
            && tries > 0
        {
            if self.silent.len() >= MAX_SILENT {
                self.silent.pop_front();
            }
            self.silent.push_back((endpoint, tries));
        }
    }

    fn recall(&mut self, endpoint: SocketAddr) -> u8 {
        let at = self.silent.iter().position(|(e, _)| *e == endpoint);
        at.and_then(|at| self.silent.remove(at))
            .map_or(0, |(_, tries)| tries)
    }
}
