//! Keeps one agent and its registry in touch: record, outbox and event stream.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};
use tracing::{debug, info, warn};

use crate::engine::{
    Forwarded,
    membership::{Membership, Outgoing, REFRESH},
};
use crate::id::{OverlayIp, UnixTime};
use crate::node::driver::{Core, Handle, Stopped, now};
use crate::os::{clock, random, tls::Pin};
use crate::registry::client::{Caller, ClientError, RegistryClient, WatchEvent};
use crate::wire::api::{
    local::LinkState,
    problem::Code,
    registry::{EventKind, Resolve},
};

/// First pause after a failure; doubled up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause while the registry does not answer, so that one that comes back is found within
/// 5 s; a thousand nodes are then some 300 attempts a second.
const MAX_PAUSE: Duration = Duration::from_secs(4);

/// Longest pause while it answers and refuses: that costs it more, and needs a person.
const MAX_REFUSED: Duration = Duration::from_secs(15);

/// How often, and how many times at first, the registry is asked for the record of another host: that
/// one attaches and tells the registry at about the same time.
const LOOK: Duration = Duration::from_secs(1);
const LOOKS: u32 = 5;

/// How the connection to a registry stands.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) state: LinkState,
    pub(super) since: UnixTime,
    /// Why it is not connected; None while it is.
    pub(super) error: Option<String>,
}

impl Link {
    /// Makes the link of an agent that has not been connected yet.
    pub(super) fn new() -> Self {
        Self {
            state: LinkState::Connecting,
            since: clock::unix(),
            error: None,
        }
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

/// Why one connection ended.
#[derive(Debug)]
enum Ended {
    Registry(ClientError),
    Stopped,
}

impl From<ClientError> for Ended {
    fn from(error: ClientError) -> Self {
        Self::Registry(error)
    }
}

impl From<Stopped> for Ended {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// One agent's connection to its registry, over all reconnections.
#[derive(Debug)]
pub(super) struct Sync {
    pub(super) handle: Handle,
    pub(super) local: OverlayIp,
    pub(super) outbox: Arc<Notify>,
    /// Told when the registry took a statement.
    pub(super) sent: Arc<Notify>,
    pub(super) link: watch::Sender<Link>,
}

impl Sync {
    /// Stays in touch until the daemon stops or the agent leaves.
    pub(super) async fn run(self) {
        let mut cursor = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let since = clock::now();
            let ended = self.connection(&mut cursor).await;
            if self.set_live(false).await.is_err() {
                return;
            }
            let error = match ended {
                Err(Ended::Stopped) => return,
                Err(Ended::Registry(error)) => error,
                Ok(never) => match never {},
            };
            self.report(&error);
            // A connection that lasted begins anew without a pause worth noticing.
            let lasted = clock::now().duration_since(since) > MAX_REFUSED;
            let before = (!lasted).then_some(pause);
            pause = next_pause(before, error.is_passing());
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    fn report(&self, error: &ClientError) {
        let state = if error.is_passing() {
            LinkState::Unreachable
        } else {
            LinkState::Refused
        };
        let text = error.to_string();
        self.link.send_if_modified(|link| {
            let changed = link.state != state;
            if changed {
                warn!(code = "registry_lost", reason = %text, "Registry lost");
                *link = Link {
                    state,
                    since: clock::unix(),
                    error: None,
                };
            }
            link.error = Some(text);
            changed
        });
    }

    async fn connection(&self, cursor: &mut Option<String>) -> Result<Infallible, Ended> {
        let membership = self.membership().await?;
        let malformed = || ClientError::Malformed("the stored pin is damaged".to_owned());
        let pin = membership.pin.parse::<Pin>().map_err(|_| malformed())?;
        let (url, domain) = (&membership.url, membership.domain);
        let client = RegistryClient::connect(url, pin, domain, clock::unix()).await?;
        for gateway in client.gateways() {
            self.take(Forwarded::Gateway, gateway.text().to_owned())
                .await?;
        }
        self.keep_up(&client, &membership).await?;
        let caller = caller(&membership);
        let mut events = client.watch(&caller, cursor.as_deref()).await?;
        info!("Registry connected");
        let connected = Link {
            state: LinkState::Connected,
            since: clock::unix(),
            error: None,
        };
        self.link.send_replace(connected);
        let mut refresh = tokio::time::interval(REFRESH);
        refresh.reset();
        let mut looks = 0;
        self.send_outbox(&client, &membership).await?;
        loop {
            tokio::select! {
                event = events.next() => self.handle(event?, cursor).await?,
                () = self.outbox.notified() => {
                    self.send_outbox(&client, &membership).await?;
                    if self.is_displaced().await? || self.is_record_due().await? {
                        refresh.reset_immediately();
                    }
                }
                _ = refresh.tick() => {
                    let has_looked = self.keep_up(&client, &membership).await?;
                    looks = if has_looked { looks + 1 } else { 0 };
                    if (1..=LOOKS).contains(&looks) {
                        refresh.reset_after(LOOK);
                    }
                }
            }
        }
    }

    async fn membership(&self) -> Result<Membership, Ended> {
        let local = self.local;
        let found = self
            .handle
            .call(move |core| core.engine.membership(local).cloned())
            .await?;
        found.ok_or(Ended::Stopped)
    }

    async fn handle(&self, event: WatchEvent, cursor: &mut Option<String>) -> Result<(), Ended> {
        let kind = match event.kind {
            EventKind::Consent => Some(Forwarded::Consent),
            EventKind::Gateway => Some(Forwarded::Gateway),
            EventKind::Record => Some(Forwarded::Record),
            EventKind::Request => Some(Forwarded::Request),
            EventKind::Revocation => Some(Forwarded::Revocation),
            EventKind::Live | EventKind::Network | EventKind::Reset => None,
        };
        if let Some(kind) = kind {
            self.take(kind, event.statement).await?;
        }
        if event.kind == EventKind::Live {
            self.set_live(true).await?;
        }
        // Moved only once the event is handled and kept.
        if event.id.is_some() {
            *cursor = event.id;
        }
        Ok(())
    }

    /// Lets the engine know whether it has all the registry's news.
    async fn set_live(&self, is_live: bool) -> Result<(), Stopped> {
        let local = self.local;
        let set = move |core: &mut Core| core.engine.set_registry_live(local, is_live, now());
        self.handle.call(set).await
    }

    /// Gives a statement to the engine; one that does not hold does not block the others.
    async fn take(&self, kind: Forwarded, text: String) -> Result<(), Ended> {
        let local = self.local;
        let taken = self
            .handle
            .call(move |core| core.engine.handle_statement(local, kind, &text, now()))
            .await?;
        if let Err(refused) = taken {
            debug!(?kind, %refused, "Statement refused");
        }
        Ok(())
    }

    /// Puts our record for another lease, and takes the admission if it was renewed.
    async fn refresh(&self, client: &RegistryClient, of: &Membership) -> Result<(), Ended> {
        let local = self.local;
        let record = self
            .handle
            .call(move |core| core.engine.record(local, now()))
            .await?;
        let Some(record) = record else {
            let lapsed = "this agent's membership lapsed; join again with a new token".to_owned();
            return Err(ClientError::Malformed(lapsed).into());
        };
        let lease = client.put_record(&caller(of), &record).await?;
        let seq = record.seq();
        let taken = move |core: &mut Core| core.engine.note_taken(local, seq);
        self.handle.call(taken).await?;
        if let Some(admission) = lease.admission {
            let text = admission.text().to_owned();
            let set = move |core: &mut Core| core.engine.set_admission(local, &text, now());
            if let Err(refused) = self.handle.call(set).await? {
                warn!(%refused, "The renewed admission does not hold");
            }
        }
        Ok(())
    }

    /// Refreshes our record; if another host has the agent, looks at its record instead, which tells
    /// whether that host still is there. Returns whether it looked.
    async fn keep_up(&self, client: &RegistryClient, of: &Membership) -> Result<bool, Ended> {
        let is_displaced = self.is_displaced().await?;
        if is_displaced {
            self.look(client, of).await?;
        }
        let local = self.local;
        // One gateway alone may say so, and we still be at others.
        let is_here = move |core: &mut Core| {
            core.engine.is_attached(local) && !core.engine.is_at_rest(local, now())
        };
        if !is_displaced || self.handle.call(is_here).await? {
            self.refresh(client, of).await?;
        }
        Ok(is_displaced)
    }

    async fn is_displaced(&self) -> Result<bool, Stopped> {
        let local = self.local;
        let is = move |core: &mut Core| core.engine.is_displaced(local);
        self.handle.call(is).await
    }

    async fn is_record_due(&self) -> Result<bool, Stopped> {
        let local = self.local;
        let is = move |core: &mut Core| core.engine.is_record_due(local);
        self.handle.call(is).await
    }

    /// Asks for our own record, which another host that runs this agent may have put.
    async fn look(&self, client: &RegistryClient, of: &Membership) -> Result<(), Ended> {
        let own = Resolve {
            name: None,
            address: Some(self.local),
        };
        match client.resolve(&caller(of), &own).await {
            Ok(record) => {
                let text = record.text().to_owned();
                self.take(Forwarded::Record, text).await
            }
            Err(error) if error.problem().is_some_and(|p| p.code == Code::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn send_outbox(&self, client: &RegistryClient, of: &Membership) -> Result<(), Ended> {
        let local = self.local;
        let waiting = self
            .handle
            .call(move |core| core.engine.outbox(local))
            .await?;
        for outgoing in waiting {
            let caller = caller(of);
            let sent = match &outgoing {
                Outgoing::Consent(consent) => client.consent(&caller, consent).await,
                Outgoing::Request(request) => client.request(&caller, request).await,
            };
            match sent {
                // Only the registry's own word on a statement ends it, not a clock or a key that is off.
                Err(error) if error.is_passing() || error.problem().is_none() => {
                    return Err(error.into());
                }
                Err(error) => warn!(%error, "The registry refused a statement for good"),
                Ok(()) => {
                    let seq = outgoing.seq();
                    let taken = move |core: &mut Core| core.engine.note_taken(local, seq);
                    self.handle.call(taken).await?;
                }
            }
            self.handle
                .call(move |core| core.engine.sent(local, &outgoing))
                .await?;
            self.sent.notify_waiters();
        }
        Ok(())
    }
}

fn caller(membership: &Membership) -> Caller<'_> {
    Caller::member(&membership.identity, membership.network, clock::unix())
}

/// Returns the pause after one of `before`, which is None after a connection that lasted.
pub(super) fn next_pause(before: Option<Duration>, is_passing: bool) -> Duration {
    let longest = if is_passing { MAX_PAUSE } else { MAX_REFUSED };
    before.map_or(FIRST_PAUSE, |before| (before * 2).min(longest))
}

/// Returns a pause between half and the whole of `pause`, so that many nodes do not come at once.
pub(super) fn jittered(pause: Duration) -> Duration {
    let [random, ..] = random::seed();
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 3: a registry that was away for long is found again within 5 s, as after a restart.
    #[test]
    fn pauses_grow_further_for_a_registry_that_refuses() {
        let tenth = |is_passing| {
            let grow = |pause, _| Some(next_pause(pause, is_passing));
            (0..10).fold(None, grow)
        };

        assert_eq!(next_pause(None, true), FIRST_PAUSE);
        assert_eq!(tenth(true), Some(Duration::from_secs(4)));
        assert_eq!(tenth(false), Some(Duration::from_secs(15)));
        assert!(jittered(MAX_PAUSE) <= MAX_PAUSE && jittered(MAX_PAUSE) >= MAX_PAUSE / 2);
    }
}
