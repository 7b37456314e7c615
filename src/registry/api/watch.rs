use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{Stream, unfold};
use tokio::sync::broadcast::error::RecvError;
use tracing::warn;

use crate::id::{AgentId, Did, NetworkId};
use crate::os::clock;
use crate::registry::api::App;
use crate::registry::api::auth::Authed;
use crate::registry::api::error::ApiError;
use crate::registry::api::hub::Ears;
use crate::registry::authorize::Call;
use crate::registry::store::{Change, Page, StoreError};
use crate::registry::watch::{Cursor, Watcher};
use crate::statement::{Grant, Statement};
use crate::wire::api::problem::{Code, Problem};
use crate::wire::api::registry::{EventKind, NetworkEvent, StatementEvent, Watch};

/// Keeps NATs and clients from taking a quiet stream for a dead one (protocol.md section 3).
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Tells, as an event stream, what changes before the caller's eyes.
#[utoipa::path(get, path = "/v1/watch", tag = "agent", params(Watch),
    responses((status = 200, content_type = "text/event-stream", body = StatementEvent),
        (status = "default", body = Problem)))]
pub(super) async fn watch(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    authed: Authed,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let (network, who) = match authed.query::<Watch>()? {
        Watch {
            network: Some(network),
            gateway: None,
        } => {
            let caller = (&authed.proven, authed.now);
            app.admit_to(&network, Call::WatchNetwork, caller).await?;
            let agent = AgentId::from(authed.proven.key);
            let names = app.store().names_of(&network, &agent).await?;
            (Some(network), Watcher::Member { agent, names })
        }
        Watch {
            network: None,
            gateway: Some(_),
        } => {
            app.admit(Call::WatchDomain, &authed.proven).await?;
            (None, Watcher::Gateway)
        }
        Watch { .. } => {
            return Err(ApiError::with(
                Code::BadRequest,
                "watch takes `network` or `gateway`",
            ));
        }
    };
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok());
    let watching = Watching::new(app, network, (authed.proven.key, who), last);
    let events = unfold(watching, async |mut watching| {
        let event = watching.next().await?;
        Some((Ok(event), watching))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)))
}

/// One open watch. It reads the store only as fast as its client reads the stream.
struct Watching {
    app: Arc<App>,
    network: Option<NetworkId>,
    who: Watcher,
    ears: Ears,
    cursor: Cursor,
    ready: VecDeque<Event>,
    /// Whether the store may hold more than was read.
    due: bool,
    /// Whether everything current at the start has been told.
    live: bool,
    /// Whether the caller may watch no more; what is ready is told still.
    is_over: bool,
}

impl Watching {
    fn new(
        app: Arc<App>,
        network: Option<NetworkId>,
        (key, who): (Did, Watcher),
        last: Option<&str>,
    ) -> Self {
        // Heard from before the first look into the store, so nothing falls in between.
        let ears = app.hub.listen(network, key);
        let epoch = app.store().epoch();
        let resumed = last.and_then(|text| Cursor::parse(text, epoch));
        let cursor = resumed.clone().unwrap_or_else(|| Cursor::start(epoch));
        let reset = || mark(EventKind::Reset, &cursor);
        let ready = resumed.is_none().then(reset).into_iter().collect();
        Self {
            app,
            network,
            who,
            ears,
            cursor,
            ready,
            due: true,
            live: false,
            is_over: false,
        }
    }

    /// Returns the next event; None when the watch is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
            if !self.due {
                self.wait().await?;
                continue;
            }
            match self.read().await {
                Ok(may_watch) => self.is_over = !may_watch,
                Err(error) => {
                    warn!(%error, "A watch ended");
                    return None;
                }
            }
        }
    }

    /// Waits for a hint that concerns this watcher; None when the watch is over.
    async fn wait(&mut self) -> Option<()> {
        let mut stop = self.app.parts.stop.clone();
        let heard = tokio::select! {
            heard = self.ears.hints.recv() => heard,
            heard = self.ears.gateways.recv() => heard,
            _ = &mut self.ears.ended => return None,
            _ = stop.wait_for(|stop| *stop) => return None,
        };
        match heard {
            Ok(hint) => self.due = self.who.is_concerned(&hint),
            Err(RecvError::Lagged(_)) => self.due = true,
            Err(RecvError::Closed) => return None,
        }
        Some(())
    }

    /// Reads the next page; tells whether the caller may still watch.
    async fn read(&mut self) -> Result<bool, StoreError> {
        let (app, now) = (self.app.clone(), clock::unix());
        let store = app.store();
        let domain = match (&mut self.who, &self.network) {
            (Watcher::Member { agent, names }, Some(network)) => {
                let agent = *agent;
                let is_member = store.record(network, &agent, now).await?.is_some();
                *names = store.names_of(network, &agent).await?;
                let mut page = store
                    .member_changes(network, &agent, self.cursor.network, now)
                    .await?;
                if !is_member {
                    // One that was revoked learns it, so that its host does not go on in vain.
                    page.changes.retain(|c| c.kind == EventKind::Revocation);
                    self.tell(page, |cursor, at| cursor.network = at);
                    return Ok(false);
                }
                self.due = page.more;
                self.tell(page, |cursor, at| cursor.network = at);
                store.gateway_changes(self.cursor.domain, now).await?
            }
            (Watcher::Gateway, _) | (Watcher::Member { .. }, None) => {
                self.due = false;
                store.domain_changes(self.cursor.domain, now).await?
            }
        };
        self.due |= domain.more;
        self.tell(domain, |cursor, at| cursor.domain = at);
        if !self.due && !self.live {
            self.live = true;
            self.ready.push_back(mark(EventKind::Live, &self.cursor));
        }
        Ok(true)
    }

    /// Queues a page's events; the last of each version carries the cursor.
    fn tell(&mut self, page: Page, advance: impl Fn(&mut Cursor, u64)) {
        let mut changes = page.changes.into_iter().peekable();
        while let Some(change) = changes.next() {
            let last = changes.peek().is_none_or(|next| next.at > change.at);
            advance(&mut self.cursor, change.at);
            let Some(event) = told(&change) else { continue };
            self.ready.push_back(if last {
                event.id(self.cursor.to_string())
            } else {
                event
            });
        }
        advance(&mut self.cursor, page.upto);
    }
}

fn mark(kind: EventKind, cursor: &Cursor) -> Event {
    Event::default()
        .event(kind.name())
        .id(cursor.to_string())
        .data("{}")
}

/// Returns a change as its event; None for a root grant that was damaged in the store.
fn told(change: &Change) -> Option<Event> {
    let event = Event::default().event(change.kind.name());
    let Some((network, EventKind::Network)) = change.network.map(|n| (n, change.kind)) else {
        let data = StatementEvent {
            network: change.network,
            statement: change.text.clone(),
        };
        return event.json_data(data).ok();
    };
    let grant = Statement::<Grant>::open(&change.text).ok()?;
    let data = NetworkEvent {
        network,
        prefix: grant.claims().root.as_ref()?.prefix,
        grant: change.text.clone(),
    };
    event.json_data(data).ok()
}
