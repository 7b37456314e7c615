//! The task that owns the engine: everything else sends it messages and waits for answers.

mod keeping;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{debug, error, info, warn};

use crate::dataplane::{
    Bound, DataplaneHandle, FromWorker, InPacket, PeerEntry, Published, Realm, Tables, Taps,
};
use crate::engine::{Engine, Event, Time, Travel, membership::State, path::Path};
use crate::id::OverlayIp;
use crate::node::carriers::Carriers;
use crate::node::punch::Punches;
use crate::node::store::Store;
use crate::os::{clock, timer::Alarm};
use crate::policy::Pair;

/// Messages that may wait for the engine; senders wait when it is full, except the data workers.
const MAX_JOBS: usize = 256;

/// Messages of a worker handled before the timers get their turn.
const BURST: usize = 64;

/// Pause before what could not be written is tried again: somebody makes room by hand.
const WRITE_AGAIN: Duration = Duration::from_secs(5);

/// The host's own network namespace, where devices are unless a program has its own.
pub(super) const HOST: Realm = Realm(0);

/// The daemon is stopping, and its engine is no more.
#[derive(Clone, Copy, Debug, Error)]
#[error("the daemon is stopping")]
pub struct Stopped;

type Job = Box<dyn FnOnce(&mut Core) + Send>;

/// Reaches the engine from other tasks.
#[derive(Clone, Debug)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
}

impl Handle {
    /// Runs `work` in the task that owns the engine and returns what it returned.
    ///
    /// What `work` changed is on disk by then, so that the caller may tell others of it.
    ///
    /// # Cancel safety
    ///
    /// Once sent, the work is done even if nobody waits for it any more.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Core) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |core| {
            let done = work(core);
            core.drain();
            // Nobody waits for the answer of a cancelled call.
            drop(answer.send(done));
        });
        self.jobs.send(job).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }

    /// Waits until the engine is no more, by whatever cause.
    ///
    /// # Cancel safety
    ///
    /// Changes nothing.
    pub async fn stopped(&self) {
        self.jobs.closed().await;
    }
}

/// What the driver's task owns.
pub struct Core {
    pub engine: Engine,
    pub store: Store,
    dataplane: DataplaneHandle,
    epoch: u64,
    /// Resolved when the workers use the tables published last; None when somebody took it.
    published: Option<Published>,
    pongs: BTreeMap<u64, oneshot::Sender<(Duration, Path)>>,
    /// Told when who may talk changed.
    installed: Arc<Notify>,
    /// Wakes the registry tasks, by agent.
    outboxes: BTreeMap<OverlayIp, Arc<Notify>>,
    /// Agents whose gateway's endpoints are to be looked up.
    gateways: mpsc::Sender<OverlayIp>,
    /// Why the state of agents could not be written last.
    unsaved: BTreeMap<OverlayIp, String>,
    /// Why what is kept beside agents could not be written last; None when it is on disk.
    unkept: Option<String>,
    /// Agents whose device somebody took away.
    lost_devices: BTreeSet<OverlayIp>,
    /// Told when there are some.
    device_lost: Arc<Notify>,
    /// None where gateways are reached by UDP alone.
    carriers: Option<Carriers>,
    punches: Punches,
    /// Who captures.
    pub(super) taps: Taps,
    /// Where agents live whose device is not in the host's own namespace.
    realms: BTreeMap<OverlayIp, Realm>,
    /// Where those live that are bound on the host: each by itself, as if in a namespace of its own.
    homes: BTreeMap<OverlayIp, Realm>,
    /// Whose they are.
    bound: BTreeMap<OverlayIp, Bound>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Takes up the state; `gateways` receives agents whose gateway is to be looked up.
    pub fn new(
        store: Store,
        state: State,
        seed: [u8; 32],
        dataplane: DataplaneHandle,
        gateways: mpsc::Sender<OverlayIp>,
    ) -> Self {
        let punches = Punches::new(dataplane.clone());
        Self {
            engine: Engine::new(state, seed, now()),
            store,
            dataplane,
            epoch: 0,
            published: None,
            pongs: BTreeMap::new(),
            installed: Arc::new(Notify::new()),
            outboxes: BTreeMap::new(),
            gateways,
            unsaved: BTreeMap::new(),
            unkept: None,
            lost_devices: BTreeSet::new(),
            device_lost: Arc::new(Notify::new()),
            carriers: None,
            punches,
            taps: Taps::default(),
            realms: BTreeMap::new(),
            homes: BTreeMap::new(),
            bound: BTreeMap::new(),
        }
    }

    /// Takes what reaches gateways where UDP does not.
    pub fn set_carriers(&mut self, carriers: Carriers) {
        self.carriers = Some(carriers);
    }

    /// Returns what reaches gateways where UDP does not; None where UDP is all there is.
    pub const fn carriers(&self) -> Option<&Carriers> {
        self.carriers.as_ref()
    }

    /// Returns the same, to be changed.
    pub const fn carriers_mut(&mut self) -> Option<&mut Carriers> {
        self.carriers.as_mut()
    }

    /// Returns what tells when somebody took a device away.
    pub fn device_lost(&self) -> Arc<Notify> {
        Arc::clone(&self.device_lost)
    }

    /// Returns what tells when who may talk changed.
    pub fn installed(&self) -> Arc<Notify> {
        Arc::clone(&self.installed)
    }

    /// Returns the agents whose device somebody took away.
    pub fn lost_devices(&self) -> Vec<OverlayIp> {
        self.lost_devices.iter().copied().collect()
    }

    /// Takes that an agent has a device again.
    pub fn device_is_back(&mut self, local: OverlayIp) {
        self.lost_devices.remove(&local);
    }

    /// Tells whether somebody took the device of `local` away.
    pub fn has_lost_device(&self, local: OverlayIp) -> bool {
        self.lost_devices.contains(&local)
    }

    /// Takes that the device of `local` is in the namespace `realm` from now on.
    pub fn set_realm(&mut self, local: OverlayIp, realm: Realm) {
        if realm == HOST {
            self.realms.remove(&local);
        } else {
            self.realms.insert(local, realm);
        }
        self.publish();
    }

    /// Returns where the device of `local` is while it is on the host: those that are bound are apart from
    /// each other there.
    pub fn home(&mut self, local: OverlayIp) -> Realm {
        let membership = self.engine.membership(local);
        let is_bound = membership.is_some_and(|m| m.placement.bound.is_some());
        if !is_bound {
            return HOST;
        }
        if let Some(home) = self.homes.get(&local) {
            return *home;
        }
        // Numbers of programs' namespaces count from the other end.
        let last = self.homes.values().map(|home| home.0).min();
        let home = Realm(last.map_or(u32::MAX, |last| last.saturating_sub(1)));
        self.homes.insert(local, home);
        self.publish();
        home
    }

    /// Forgets where the device of an agent was that left: when it comes back it may be elsewhere.
    pub fn forget_place(&mut self, local: OverlayIp) {
        self.realms.remove(&local);
        self.homes.remove(&local);
    }

    /// Takes whose sockets alone may use agents that are on the host.
    pub fn set_bound(&mut self, bound: BTreeMap<OverlayIp, Bound>) {
        if self.bound != bound {
            self.bound = bound;
            self.publish();
        }
    }

    /// Tells whether programs of the host may use the agent.
    pub fn is_on_host(&self, local: OverlayIp) -> bool {
        let membership = self.engine.membership(local);
        let is_apart = membership.is_some_and(|membership| membership.placement.apart);
        !is_apart && !self.realms.contains_key(&local)
    }

    /// Returns the data plane.
    pub const fn dataplane(&self) -> &DataplaneHandle {
        &self.dataplane
    }

    /// Returns what wakes the registry task of an agent.
    pub fn outbox(&mut self, local: OverlayIp) -> Arc<Notify> {
        Arc::clone(self.outboxes.entry(local).or_default())
    }

    /// Forgets what wakes the registry task of an agent that left.
    pub fn close_outbox(&mut self, local: OverlayIp) {
        self.outboxes.remove(&local);
        self.lost_devices.remove(&local);
    }

    /// Returns what resolves when the answer to probe `id` came: its round-trip time and way.
    pub fn await_pong(&mut self, id: u64) -> oneshot::Receiver<(Duration, Path)> {
        let (pong, answered) = oneshot::channel();
        self.pongs.retain(|_, waiting| !waiting.is_closed());
        self.pongs.insert(id, pong);
        answered
    }

    /// Stops the data plane; what it still had to send is sent.
    pub async fn close(self) {
        self.dataplane.shutdown();
        if let Some(carriers) = self.carriers {
            carriers.close().await;
        }
    }

    /// Carries out what the engine wants now; returns what resolves when the workers know.
    ///
    /// This is the barrier of a revocation: the state is on disk when this returns, and nothing of
    /// a removed peer is delivered or sent any more once the receiver resolved.
    pub fn settle_now(&mut self) -> Option<Published> {
        self.drain();
        self.published.take()
    }

    /// Takes out everything the engine has to say.
    fn drain(&mut self) {
        while let Some(event) = self.engine.poll_event() {
            self.handle_event(event);
        }
        while let Some(punch) = self.engine.poll_punch() {
            self.punches.begin(punch);
        }
        while let Some(event) = self.engine.poll_channel() {
            self.dataplane.change_channel(event);
        }
        while let Some(event) = self.engine.poll_hop() {
            self.dataplane.change_hop(&event);
        }
        let mut packets = Vec::new();
        while let Some(packet) = self.engine.poll_packet() {
            let (local, peer, bytes) = (packet.local, packet.peer, packet.bytes);
            packets.push(InPacket { local, peer, bytes });
        }
        if !packets.is_empty() {
            self.dataplane.deliver(packets);
        }
        while let Some((local, bytes)) = self.engine.poll_injection() {
            self.dataplane.inject(local, bytes);
        }
        let mut datagrams = Vec::new();
        while let Some(transmit) = self.engine.poll_transmit() {
            match transmit.travel {
                Travel::Freely => datagrams.push((transmit.to, transmit.bytes)),
                Travel::Whole | Travel::Briefly => self.dataplane.send_alone(transmit),
            }
        }
        if !datagrams.is_empty() {
            self.dataplane.send(datagrams);
        }
        self.show_dropped();
    }

    fn handle_event(&mut self, event: Event) {
        match event {
            Event::Changed { local } => self.save([local]),
            // What keeps in touch with the registry looks.
            Event::Displaced { local } => self.outbox(local).notify_one(),
            Event::Gateway { local } => {
                // There is room for every agent a node carries.
                if self.gateways.try_send(local).is_err() {
                    warn!("Too many gateways to look up at once");
                }
            }
            Event::Outbox { local } => self.outbox(local).notify_one(),
            Event::Pending { local, from } => {
                info!("A trust request waits for an answer");
                debug!(agent = %local, peer = %from, "Trust request");
            }
            Event::Pong { id, rtt, path, .. } => {
                if let Some(waiting) = self.pongs.remove(&id) {
                    // Whoever asked may have gone.
                    let _gone = waiting.send((rtt, path));
                }
            }
            Event::Tables => self.publish(),
            Event::Twin { local } => {
                if self.engine.is_at_rest(local, now()) {
                    let code = "displaced";
                    warn!(
                        code,
                        "Another host runs an agent of ours, which is at rest here now"
                    );
                } else {
                    info!("An agent is ours again: the other host that ran it is gone");
                }
                debug!(agent = %local, "Twin");
            }
            Event::Withheld { local, from } => {
                let code = "revocation_withheld";
                warn!(
                    code,
                    "A peer knew of a revocation that the registry did not tell"
                );
                debug!(agent = %local, peer = from.as_ref().map(display), "Revocation withheld");
            }
        }
    }

    fn publish(&mut self) {
        self.epoch += 1;
        let peers = self.engine.tables().into_iter();
        let realm = |local| {
            let elsewhere = self.realms.get(&local).or_else(|| self.homes.get(&local));
            elsewhere.copied().unwrap_or(HOST)
        };
        let tables = Tables {
            epoch: self.epoch,
            locals: self
                .engine
                .locals()
                .map(|local| (local, realm(local)))
                .collect(),
            hidden: self.engine.hidden().collect(),
            bound: self.bound.clone(),
            peers: peers
                .map(|(local, peer, inbound)| (Pair { local, peer }, PeerEntry { inbound }))
                .collect(),
        };
        self.published = Some(self.dataplane.publish(tables));
        self.installed.notify_waiters();
    }

    fn handle_worker(&mut self, message: FromWorker) {
        let time = now();
        match message {
            FromWorker::Datagrams(all) => {
                for (from, bytes) in all {
                    self.engine.handle_datagram(from, &bytes, time);
                }
            }
            FromWorker::Packets(all) => {
                for packet in all {
                    self.engine
                        .handle_packet(packet.local, packet.peer, &packet.bytes, time);
                }
            }
            FromWorker::ChannelUsed { local, peer, id } => {
                self.engine.handle_channel_used(local, peer, id, time);
            }
            FromWorker::Passed(all) => self.engine.handle_passed(&all, time),
            FromWorker::TunGone(local) => {
                let code = "no_device";
                warn!(code, "A network device was removed by somebody else");
                debug!(agent = %local, "Network device gone");
                self.lost_devices.insert(local);
                self.device_lost.notify_one();
            }
            FromWorker::Unknown(packet) if self.engine.has_peer(packet.local, packet.peer) => {
                // The worker had not seen the newest tables, which are before this in its queue.
                self.dataplane.resume(vec![packet]);
            }
            FromWorker::Unknown(packet) => {
                self.engine
                    .handle_unknown(packet.local, &packet.bytes, time);
            }
        }
    }
}

/// Runs the engine until every [`Handle`] is gone; then tells the gateways that we leave.
pub async fn run(
    mut core: Core,
    mut jobs: mpsc::Receiver<Job>,
    mut worker: mpsc::Receiver<FromWorker>,
    mut alarm: Alarm,
) -> Core {
    let mut again = tokio::time::interval(WRITE_AGAIN);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    core.drain();
    loop {
        alarm.set(core.engine.poll_timeout().map(|(at, _reason)| at));
        tokio::select! {
            biased;
            job = jobs.recv() => match job {
                Some(job) => job(&mut core),
                None => break,
            },
            rung = alarm.rings() => match rung {
                Ok(()) => core.engine.handle_timeout(now()),
                Err(error) => {
                    error!(%error, "The engine's timer failed");
                    break;
                }
            },
            _ = again.tick(), if core.unsaved().is_some() => core.catch_up(),
            message = worker.recv() => match message {
                Some(message) => {
                    core.handle_worker(message);
                    for _ in 0..BURST {
                        let Ok(more) = worker.try_recv() else { break };
                        core.handle_worker(more);
                    }
                }
                None => break,
            },
        }
        core.drain();
    }
    core.engine.detach(now());
    core.drain();
    if core.unsaved().is_some() {
        core.catch_up();
    }
    core
}

/// Makes the channel on which jobs reach the engine.
pub fn channel() -> (Handle, mpsc::Receiver<Job>) {
    let (sender, receiver) = mpsc::channel(MAX_JOBS);
    (Handle { jobs: sender }, receiver)
}

/// Returns both clocks of the engine; time goes on while the host sleeps.
pub fn now() -> Time {
    Time {
        now: clock::boot(),
        unix: clock::unix(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{self, DataplaneConfig};
    use crate::engine::{
        membership::{Membership, Outgoing},
        testing::{NOW, membership},
    };
    use crate::os::udp;
    use crate::statement::Scope;

    fn time() -> Time {
        Time { unix: NOW, ..now() }
    }

    #[tokio::test]
    async fn an_engine_that_ended_is_noticed() {
        let (handle, jobs) = channel();

        drop(jobs);

        handle.stopped().await;
        assert!(handle.call(|_| ()).await.is_err());
    }

    /// P-015: whoever is told of a statement or sees its effect finds it on disk.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_call_changed_is_on_disk_before_its_caller_knows() {
        let name = format!("agentnet-driver-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let (store, state) = Store::open(&dir).unwrap();
        let config = DataplaneConfig {
            udp: udp::bind_shared(0, dataplane::SOCKETS).unwrap(),
            workers: 2,
            is_realtime: false,
        };
        let (plane, worker) = dataplane::start(config).unwrap();
        let (handle, jobs) = channel();
        let (gateways, _wanted) = mpsc::channel(1);
        let core = Core::new(store, state, [7; 32], plane, gateways);
        let driver = tokio::spawn(run(core, jobs, worker, Alarm::open().unwrap()));
        let member = membership(10, "a");
        let local = member.address().unwrap();
        let on_disk = || {
            let file = dir.join(format!("agents/{local}.json"));
            std::fs::read_to_string(file).unwrap()
        };
        handle
            .call(move |core| core.engine.add(member, time()))
            .await
            .unwrap();

        for n in 0..50 {
            let signed = move |core: &mut Core| core.engine.record(local, time());
            let record = handle.call(signed).await.unwrap().unwrap();
            assert!(on_disk().contains(&format!("\"seq\": {}", record.seq())));
            let to = format!("x{n}").parse().unwrap();
            let asked = move |core: &mut Core| {
                let ask = |m: &mut Membership, unix| m.request(to, Scope::Any, None, unix);
                core.engine.change(local, time(), ask).unwrap().unwrap();
            };
            handle.call(asked).await.unwrap();
            let waiting = handle.call(move |core| core.engine.outbox(local));
            let Some(Outgoing::Request(last)) = waiting.await.unwrap().pop() else {
                panic!("nothing waits for the registry");
            };
            assert!(on_disk().contains(last.text()));
        }

        drop(handle);
        driver.await.unwrap().close().await;
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
