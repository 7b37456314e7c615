//! Transitions of trust: requests and their answers, consents and their end.

use agentnet::engine::{
    membership::{AutoRule, Membership, Selector},
    trust::TrustError,
};
use agentnet::id::{NamePattern, UnixTime};
use agentnet::os::clock;
use agentnet::statement::Scope;

use crate::pair::name;
use crate::world::check::Failure;
use crate::world::faults::Fault;
use crate::world::model::{Allow, Belief};
use crate::world::play::Play;
use crate::world::transition::Transition;

/// Returns a scope as consents carry it.
pub(crate) fn scope(allow: Allow) -> Scope {
    match allow {
        Allow::Replies => Scope::replies_only(),
        Allow::Any | Allow::Both | Allow::High | Allow::Low => allow.text().parse().unwrap(),
    }
}

impl Play {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "`apply` sorts all kinds of transition"
    )]
    pub(super) fn change_trust(&mut self, transition: Transition) -> Result<bool, Failure> {
        match transition {
            Transition::Approve { at, from, allow } => self.approve(at, from, allow, true),
            Transition::Auto { at, from, allow } => Ok(self.add_auto(at, from, allow)),
            Transition::Deny { at, from } => self.deny(at, from),
            Transition::DropAutos { at } => Ok(self.drop_autos(at)),
            Transition::Request { from, to, offer } => self.request(from, to, offer),
            Transition::Rescope { at, peer, allow } => self.approve(at, peer, allow, false),
            Transition::Revoke { at, peer } => self.revoke(at, peer),
            other => unreachable!("{other} is no change of trust"),
        }
    }

    /// Runs a trust command at an agent; None when its daemon does not run or it is no member.
    fn command<T>(
        &mut self,
        at: usize,
        change: impl FnOnce(&mut Membership, UnixTime) -> Result<T, TrustError>,
    ) -> Option<Result<T, TrustError>> {
        let done = self
            .world
            .with(at, |engine, local, time| engine.change(local, time, change));
        done.flatten()
    }

    fn name_of(&self, agent: usize) -> agentnet::id::MemberName {
        name(&self.world.hosts[agent].name)
    }

    fn request(&mut self, from: usize, to: usize, offer: Allow) -> Result<bool, Failure> {
        let asked = self.name_of(to);
        let holds = self.model.holds(from, from, clock::now());
        let done = self.command(from, |m, unix| m.request(asked, scope(offer), None, unix));
        let Some(done) = done else {
            return Ok(false);
        };
        if done.is_err() && holds == Belief::Yes || done.is_ok() && holds == Belief::No {
            return Err(Failure::between(
                from,
                to,
                format!("asking ended with {done:?}"),
            ));
        }
        let asked = self.name_of(to).to_string();
        if self.world.fault == Some(Fault::TrustsByItself) {
            self.world.pass(std::time::Duration::from_secs(1));
            let asking = self.name_of(from);
            drop(self.command(to, |m, unix| m.approve(&asking, Scope::Any, unix)));
        }
        let made = self.world.hosts[from].membership();
        let made = made
            .and_then(|m| m.outgoing.get(&asked))
            .map(|r| r.hash().to_string());
        if let Some(hash) = made.filter(|_| done.is_ok()) {
            self.model.ask(from, to, hash, offer, clock::now());
        }
        Ok(true)
    }

    /// Approves a request, or changes the scope of a consent that stands.
    fn approve(
        &mut self,
        at: usize,
        from: usize,
        allow: Allow,
        is_request: bool,
    ) -> Result<bool, Failure> {
        let asking = self.name_of(from);
        let waits = self.waits(at, from);
        let stands = self.model.allows(at, from).is_some();
        if !is_request && !stands {
            return Ok(false);
        }
        let done = self.command(at, |m, unix| m.approve(&asking, scope(allow), unix));
        let Some(done) = done else {
            return Ok(false);
        };
        let is_sure = is_request && waits || stands && self.model.has_key(at, from);
        let may_be = stands || self.model.asked.contains_key(&(from, at));
        if done.is_err() && is_sure || done.is_ok() && !may_be {
            return Err(Failure::between(
                at,
                from,
                format!("approving ended with {done:?}"),
            ));
        }
        if done.is_ok() {
            let answers = self.answered_at(at, from);
            self.model
                .consent(at, from, Some(allow), answers, clock::now());
            self.answered(at, from);
        }
        Ok(true)
    }

    /// Tells whether a request surely waits at an agent that can answer it.
    fn waits(&self, at: usize, from: usize) -> bool {
        let now = clock::now();
        let both = self
            .model
            .holds(at, at, now)
            .min(self.model.holds(at, from, now));
        both.min(self.model.waits(from, at, now)) == Belief::Yes
    }

    fn answered(&mut self, at: usize, from: usize) {
        if let Some(asked) = self.model.asked.get_mut(&(from, at)) {
            asked.is_waiting = false;
        }
    }

    /// Returns the request that the newest consent of `at` to `peer` answers.
    pub(super) fn answered_at(&self, at: usize, peer: usize) -> Option<String> {
        let membership = self.world.hosts[at].membership()?;
        let given = membership
            .given
            .get(&self.world.hosts[peer].identity.did())?;
        given.claims().re.map(|hash| hash.to_string())
    }

    fn deny(&mut self, at: usize, from: usize) -> Result<bool, Failure> {
        let asking = self.name_of(from);
        let waits = self.waits(at, from);
        let done = self.command(at, |m, _| m.deny(&asking));
        let Some(done) = done else {
            return Ok(false);
        };
        if done.is_err() && waits || done.is_ok() && !self.model.asked.contains_key(&(from, at)) {
            return Err(Failure::between(
                at,
                from,
                format!("denying ended with {done:?}"),
            ));
        }
        self.answered(at, from);
        Ok(true)
    }

    fn revoke(&mut self, at: usize, peer: usize) -> Result<bool, Failure> {
        let revoked = self.name_of(peer);
        let stands = self.model.allows(at, peer).is_some();
        let holds = self.model.holds(at, at, clock::now());
        let done = self.command(at, |m, unix| m.revoke(&revoked, unix));
        let Some(done) = done else {
            return Ok(false);
        };
        let is_sure = stands && holds == Belief::Yes;
        let may_be = stands || self.model.asked.contains_key(&(at, peer));
        if done.is_err() && is_sure || done.is_ok() && !may_be {
            return Err(Failure::between(
                at,
                peer,
                format!("revoking ended with {done:?}"),
            ));
        }
        if done.is_ok() {
            self.model.close(at, peer);
            if stands {
                self.model.consent(at, peer, None, None, clock::now());
            }
        }
        Ok(true)
    }

    fn add_auto(&mut self, at: usize, from: usize, allow: Allow) -> bool {
        let rule = AutoRule {
            from: Selector::Name(NamePattern::exactly(&self.name_of(from))),
            allow: scope(allow),
        };
        // Noted first: it may answer a request at once.
        let autos = &mut self.model.agents[at].autos;
        let before = autos.clone();
        autos.retain(|(who, _)| *who != from);
        autos.push((from, allow));
        let done = self.command(at, |m, _| m.auto_add(rule));
        if done.is_none() {
            self.model.agents[at].autos = before;
        }
        done.is_some()
    }

    fn drop_autos(&mut self, at: usize) -> bool {
        let mut any = false;
        while let Some(Ok(_)) = self.command(at, |m, _| m.auto_remove(0)) {
            any = true;
        }
        if any {
            self.model.agents[at].autos.clear();
        }
        any
    }
}
