//! How hosts keep in touch with the registry: as the daemon's registry task does, step by step.

use std::time::Duration;

use agentnet::engine::{Forwarded, membership::Outgoing, membership::REFRESH};
use agentnet::os::clock;

use crate::pair::gateway_statement;
use crate::world::deployment::Deployment;
use crate::world::host::RETRY;
use crate::world::registry::Denied;

/// How far a host's clock may be off before the registry refuses its proofs.
const MAX_SKEW: i64 = 60_000; // ms

/// Pause after the registry refused an agent.
const REFUSED: Duration = Duration::from_secs(15);

impl Deployment {
    /// Lets a host look at the registry within `longest`.
    pub(crate) fn wake_link(&mut self, host: usize, longest: Duration) {
        let at = clock::now() + Duration::from_millis(2) + self.dice.within(longest);
        let link = &mut self.hosts[host].link;
        link.wake = Some(link.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Lets a host that lost the registry, or could not reach it, try again.
    pub(crate) fn retry_link(&mut self, host: usize) {
        let (shortest, longest) = RETRY;
        let at = clock::now() + shortest + self.dice.within(longest - shortest);
        self.hosts[host].link.wake = Some(at);
    }

    /// Drops connections that cannot be any more, and has hosts look whether theirs can.
    pub(crate) fn check_links(&mut self) {
        for host in 0..self.hosts.len() {
            let is_connected = self.hosts[host].link.is_connected;
            if self.can_link(host) && !is_connected {
                self.retry_link(host);
            } else if !self.can_link(host) && is_connected {
                self.unlink(host);
            }
        }
    }

    fn can_link(&self, host: usize) -> bool {
        let found = &self.hosts[host];
        self.is_registry_up
            && !self.registry_cuts.contains(&host)
            && found.is_member()
            && found.asleep.is_none()
            && found.skew.abs() < MAX_SKEW
    }

    fn unlink(&mut self, host: usize) {
        self.hosts[host].link.is_connected = false;
        self.hosts[host].link.wake = None;
        self.with(host, |engine, local, time| {
            engine.set_registry_live(local, false, time);
        });
    }

    /// Connects if need be, refreshes the record when it is time, sends what waits, takes the news.
    pub(crate) fn sync(&mut self, host: usize) {
        self.hosts[host].link.wake = None;
        if !self.can_link(host) {
            if self.hosts[host].link.is_connected {
                self.unlink(host);
            }
            return;
        }
        if let Err(Denied(why)) = self.connection(host) {
            self.refused(host, format!("is refused by the registry: {why}"));
            self.unlink(host);
            self.hosts[host].link.wake = Some(clock::now() + REFUSED);
        }
    }

    fn connection(&mut self, host: usize) -> Result<(), Denied> {
        let now = clock::now();
        let is_new = !self.hosts[host].link.is_connected;
        if is_new {
            let gateway = gateway_statement(self.true_time().unix);
            self.take(host, Forwarded::Gateway, gateway.text());
        }
        if is_new || self.hosts[host].link.refresh_at <= now {
            self.refresh(host)?;
            self.hosts[host].link.refresh_at = now + REFRESH;
        }
        self.hosts[host].link.is_connected = true;
        self.send_outbox(host);
        self.take_news(host);
        if is_new {
            self.with(host, |engine, local, time| {
                engine.set_registry_live(local, true, time);
            });
        }
        let link = &mut self.hosts[host].link;
        link.wake = Some(
            link.wake
                .map_or(link.refresh_at, |at| at.min(link.refresh_at)),
        );
        Ok(())
    }

    fn take(&mut self, host: usize, kind: Forwarded, text: &str) {
        // One that does not hold does not block the others.
        let taken = self.with(host, |engine, local, time| {
            engine.handle_statement(local, kind, text, time)
        });
        if let Some(Err(why)) = taken {
            self.refused(host, format!("does not take a {kind:?}: {why}"));
        }
    }

    fn refused(&mut self, host: usize, why: String) {
        let at = clock::now() - self.start;
        self.trail.refused(host, why, at);
    }

    fn refresh(&mut self, host: usize) -> Result<(), Denied> {
        let record = self.with(host, |engine, local, time| engine.record(local, time));
        let record = record.flatten();
        let record = record.ok_or_else(|| Denied("the membership lapsed".to_owned()))?;
        let unix = self.true_time().unix;
        let renewed = self.registry.put_record(&record, unix)?;
        self.note_taken(host, record.seq());
        self.spread();
        if let Some(admission) = renewed {
            let set = self.with(host, |engine, local, time| {
                engine.set_admission(local, admission.text(), time)
            });
            if let Some(Err(refused)) = set {
                self.refused(host, format!("does not take its admission: {refused}"));
            }
        }
        Ok(())
    }

    fn send_outbox(&mut self, host: usize) {
        let waiting = self.with(host, |engine, local, _| engine.outbox(local));
        let caller = self.hosts[host].identity.did().into();
        for outgoing in waiting.unwrap_or_default() {
            let unix = self.true_time().unix;
            let sent = match &outgoing {
                Outgoing::Consent(consent) => self.registry.consent(caller, consent, unix),
                Outgoing::Request(request) => self.registry.request(caller, request, unix),
            };
            match sent {
                Ok(()) => self.note_taken(host, outgoing.seq()),
                Err(Denied(why)) => {
                    let why = format!("has a statement refused by the registry: {why}");
                    self.refused(host, why);
                }
            }
            self.with(host, |engine, local, _| engine.sent(local, &outgoing));
            self.spread();
        }
    }

    /// Lets a host know that the registry took a statement of its agent.
    fn note_taken(&mut self, host: usize, seq: u64) {
        self.with(host, |engine, local, _| engine.note_taken(local, seq));
    }

    fn take_news(&mut self, host: usize) {
        let agent = self.hosts[host].identity.did().into();
        let epoch = self.registry.epoch;
        let cursor = self.hosts[host].link.cursor.filter(|(of, _)| *of == epoch);
        let after = cursor.map_or(0, |(_, version)| version);
        let unix = self.true_time().unix;
        let (changes, upto) = self.registry.changes(agent, after, unix);
        for (kind, text) in changes {
            self.take(host, kind, &text);
        }
        self.hosts[host].link.cursor = Some((epoch, upto));
    }

    /// Wakes those whom changes at the registry concern.
    pub(crate) fn spread(&mut self) {
        for hint in std::mem::take(&mut self.registry.hints) {
            for host in 0..self.hosts.len() {
                let agent = self.hosts[host].identity.did().into();
                let is_concerned = self.registry.watcher(agent).is_concerned(&hint);
                if is_concerned && self.hosts[host].link.is_connected {
                    self.wake_link(host, Duration::from_millis(40));
                }
            }
            if matches!(hint, agentnet::registry::watch::Hint::Revocation) {
                self.wake_gateway();
            }
        }
    }
}
