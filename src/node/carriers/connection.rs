//! One gateway's connection: made when something is to go, and made anew when it was lost.

use std::{net::IpAddr, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info};

use crate::id::{DomainPrefix, OverlayIp};
use crate::node::carriers::{Shared, State};
use crate::os::random;
use crate::os::wss::{
    Batch, Came, ConnectError, Receiver, Sender, Target, Waiting, WssError, connect,
};

/// First pause after a connection could not be made, doubled up to the longest: a gateway that comes
/// back is found within this.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(8);

/// A connection that lasted less was none.
const LASTING: Duration = Duration::from_secs(5);

/// Time without anything to send after which a connection is closed: a gateway that is attached to
/// hears something every 25 s.
const IDLE: Duration = Duration::from_secs(90);

/// Wait for anything to come after something went, before the other end is asked for a sign of life,
/// and then until it is taken for gone, though something on the way acknowledges what we send. Long,
/// since both may stand behind megabytes in buffers of TCP.
const PATIENCE: Duration = Duration::from_secs(2);
const DEAD: Duration = Duration::from_secs(12);

/// Bytes that came and that the workers did not look at yet.
const MAX_UNREAD: usize = 512 << 10;

/// A gateway's connection.
pub(super) struct Connection {
    /// What stands for it.
    at: SocketAddr,
    /// Where nothing of the underlay is.
    domain: DomainPrefix,
    shared: Arc<Shared>,
    targets: watch::Receiver<Vec<Target>>,
    waiting: Waiting,
    state: watch::Sender<State>,
    unread: Arc<Semaphore>,
}

/// How a connection ended.
enum Ended {
    /// Nothing was to go for long.
    Idle,
    Lost(String),
    /// The daemon stops.
    Over,
}

impl Connection {
    pub(super) fn new(
        (at, domain): (SocketAddr, DomainPrefix),
        shared: Arc<Shared>,
        (targets, waiting): (watch::Receiver<Vec<Target>>, Waiting),
        state: watch::Sender<State>,
    ) -> Self {
        Self {
            at,
            domain,
            shared,
            targets,
            waiting,
            state,
            unread: Arc::new(Semaphore::new(MAX_UNREAD)),
        }
    }

    /// Runs until nobody can give it anything any more.
    pub(super) async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        while let Some(first) = self.waiting.next().await {
            let since = Instant::now();
            let ended = match self.connect().await {
                Ok((sender, receiver)) => self.carry(sender, receiver, first).await,
                Err(error) => {
                    debug!(%error, "No connection to a gateway");
                    self.state.send_replace(State::Failed {
                        code: error.code(),
                        text: whole(&error),
                        cure: error.hint(),
                    });
                    self.rest(&mut pause).await;
                    continue;
                }
            };
            match ended {
                Ended::Over => return,
                Ended::Idle => {
                    self.state.send_replace(State::Idle);
                    pause = FIRST_PAUSE;
                }
                Ended::Lost(text) => {
                    info!(%text, "The connection to a gateway was lost");
                    self.lose(text);
                    if since.elapsed() < LASTING {
                        self.rest(&mut pause).await;
                    } else {
                        pause = FIRST_PAUSE;
                    }
                }
            }
        }
    }

    /// Tries where the gateway may be, in turn.
    async fn connect(&self) -> Result<(Sender, Receiver), ConnectError> {
        self.state.send_replace(State::Connecting);
        let targets = self.targets.borrow().clone();
        let mut last = ConnectError::NoAddress(String::new());
        let domain = self.domain;
        // The underlay is never reached through the overlay.
        let is_usable = move |ip: IpAddr| match ip {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) => OverlayIp::new(ip).map_or(true, |ip| ip.network().domain() != domain),
        };
        for target in &targets {
            let proxy = self.shared.proxies.of(&target.host);
            match connect(target, proxy, &is_usable).await {
                Ok(halves) => {
                    self.state.send_replace(State::Connected {
                        target: target.to_string(),
                        proxy: proxy.map(ToString::to_string),
                    });
                    info!("Connected to a gateway by WebSocket");
                    return Ok(halves);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Carries datagrams both ways until the connection ends.
    async fn carry(&mut self, sender: Sender, receiver: Receiver, first: Batch) -> Ended {
        let heard = Notify::new();
        let unread = Arc::clone(&self.unread);
        // Both at once: one that waits for the other end to read must not keep it from being read.
        tokio::select! {
            ended = send(sender, &mut self.waiting, first, &heard) => {
                ended.unwrap_or_else(|error| Ended::Lost(error.to_string()))
            }
            error = receive(receiver, (self.at, &self.shared), unread, &heard) => {
                Ended::Lost(error.to_string())
            }
        }
    }

    /// Tells that the connection was lost, by which something goes there again soon.
    fn lose(&self, text: String) {
        self.state.send_replace(State::Failed {
            code: "wss_lost",
            text,
            cure: "it is made anew by itself; see whether the gateway runs",
        });
        // Whoever is to hear of it has many others to hear of.
        let _full = self.shared.lost.try_send(self.at);
    }

    /// Pauses, longer each time; what was to go meanwhile is refused, and counted by who offers it.
    async fn rest(&mut self, pause: &mut Duration) {
        self.waiting.refuse(true);
        // So that many nodes do not come at once: between half and all of it.
        let [random, ..] = random::seed();
        sleep(*pause / 2 + *pause / 2 * u32::from(random) / 256).await;
        *pause = (*pause * 2).min(MAX_PAUSE);
        self.waiting.refuse(false);
    }
}

/// Sends what is to go, and asks for a sign of life when nothing comes.
async fn send(
    mut sender: Sender,
    waiting: &mut Waiting,
    first: Batch,
    heard: &Notify,
) -> Result<Ended, WssError> {
    let mut sent = Instant::now();
    sender.send(first, waiting).await?;
    // Since when nothing came though something went; None when nothing is awaited.
    let mut awaiting = Some(sent);
    let mut is_asked = false;
    loop {
        let due = match awaiting {
            Some(at) if is_asked => at + DEAD,
            Some(at) => at + PATIENCE,
            None => sent + IDLE,
        };
        tokio::select! {
            batch = waiting.next() => {
                let Some(batch) = batch else {
                    sender.close().await?;
                    return Ok(Ended::Over);
                };
                sender.send(batch, waiting).await?;
                sent = Instant::now();
                awaiting.get_or_insert(sent);
            }
            () = heard.notified() => (awaiting, is_asked) = (None, false),
            () = sleep_until(due) => match awaiting {
                None => {
                    sender.close().await?;
                    return Ok(Ended::Idle);
                }
                Some(_) if is_asked => {
                    return Ok(Ended::Lost("the gateway fell silent".to_owned()));
                }
                Some(_) => {
                    sender.ping().await?;
                    is_asked = true;
                }
            }
        }
    }
}

/// Hands on what comes; returns why nothing comes any more.
async fn receive(
    mut receiver: Receiver,
    (at, shared): (SocketAddr, &Shared),
    unread: Arc<Semaphore>,
    heard: &Notify,
) -> WssError {
    loop {
        let mut bytes = Vec::new();
        let came = match receiver.receive(&mut bytes).await {
            Ok(came) => came,
            Err(error) => return error,
        };
        heard.notify_one();
        let Came::Datagrams { stride } = came else {
            continue;
        };
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // Where the workers are busy, the gateway is to wait, and drop what is too much.
        let share = Arc::clone(&unread).acquire_many_owned(size).await;
        if let Ok(share) = share {
            shared.plane.receive(at, bytes, stride, share);
        }
    }
}

/// Returns an error with its cause.
fn whole(error: &ConnectError) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
