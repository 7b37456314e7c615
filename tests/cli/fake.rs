use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agentnet::id::{
    AgentId, IdentityKey, Label, NetworkId, NetworkPrefix, OverlayIp, TunnelSecret, UnixTime,
    WireGuardKey,
};
use agentnet::node::capture::Pieces;
use agentnet::node::local_api::{self, Control};
use agentnet::statement::Scope;
use agentnet::wire::api::local::{
    AgentStatus, AutoRemove, AutoRule, AutoRules, CaptureQuery, Dns, DnsState, Down, Endpoint,
    EndpointKind, Family, GatewayStatus, JoinRequest, Joined, Left, LinkState, LogLines,
    MembershipStatus, Metrics, NetcheckTargets, OfAgent, PairState, PathKind, PathPair, PathQuery,
    PathReport, Peer, Peers, Pending, PendingRequest, PingOutcome, PingReply, PingRequest,
    RegistryStatus, SessionState, Status, TrustApprove, TrustAwait, TrustChange, TrustChanged,
    TrustList, TrustName, TrustRequest, TrustStands, Warning, Whois, WhoisQuery, Why, WireGuardAdd,
    WireGuardAdded, WireGuardOwn, WireGuardPeer, WireGuardPeers, WireGuardRef, WireGuardRemove,
    WireGuardRemoved,
};
use agentnet::wire::api::problem::{Code, Problem};
use agentnet::wire::carrier::Carrier;
use tokio::{runtime::Runtime, sync::Notify};

use crate::Scratch;

const NOW: UnixTime = UnixTime::from_secs(1_800_000_000);

/// The local API of a node that is not there, with answers that tests know.
pub(crate) struct FakeDaemon {
    pub(crate) socket: String,
    runtime: Option<Runtime>,
    /// Keeps the socket's folder.
    _scratch: Scratch,
}

impl FakeDaemon {
    pub(crate) fn start() -> Self {
        let scratch = Scratch::new();
        let socket = scratch.join("agentnet.sock");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let stop = Arc::new(Notify::new());
        let control = Arc::new(Fake {
            stop: Arc::clone(&stop),
            awaited: AtomicUsize::new(0),
        });
        let listener = runtime.block_on(async { local_api::bind(&socket).unwrap() });
        runtime.spawn(async move {
            let shutdown = async move { stop.notified().await };
            local_api::serve(listener, control, shutdown).await.unwrap();
        });
        Self {
            socket: text(&socket),
            runtime: Some(runtime),
            _scratch: scratch,
        }
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

struct Fake {
    stop: Arc<Notify>,
    /// How often somebody waited for trust.
    awaited: AtomicUsize,
}

fn id(seed: u8) -> AgentId {
    IdentityKey::from_seed([seed; 32]).did().into()
}

fn network() -> NetworkId {
    IdentityKey::from_seed([9; 32]).did().into()
}

fn address(seed: u8) -> OverlayIp {
    let prefix = "fd00:1:2:3::/64".parse::<NetworkPrefix>().unwrap();
    prefix.address_of(&id(seed)).unwrap()
}

fn acme() -> Label {
    "acme".parse().unwrap()
}

fn ago(secs: u64) -> UnixTime {
    UnixTime::from_secs(NOW.as_secs() - secs)
}

fn wireguard(secret: &TunnelSecret) -> WireGuardPeer {
    WireGuardPeer {
        key: WireGuardKey::of(secret),
        address: address(5),
        agent: "planner.acme.agent".to_owned(),
        state: SessionState::Up,
        endpoint: Some("192.0.2.5:51820".parse().unwrap()),
        preshared_key: false,
        last_handshake: Some(ago(60)),
        last_inbound: Some(ago(3)),
        rx_bytes: 1,
        tx_bytes: 2,
        inbound: Scope::Any,
    }
}

fn wireguard_own() -> WireGuardOwn {
    WireGuardOwn {
        agent: "planner.acme.agent".to_owned(),
        key: WireGuardKey::of(&TunnelSecret::from_seed([6; 32])),
        address: address(1),
        port: 16200,
        endpoints: vec!["198.51.100.4:16200".parse().unwrap()],
    }
}

fn changed(name: &str, change: TrustChange, inbound: Option<Scope>) -> TrustChanged {
    TrustChanged {
        name: format!("{name}.acme.agent"),
        change,
        inbound,
        told: true,
    }
}

fn agent() -> AgentStatus {
    AgentStatus {
        name: "planner.acme.agent".to_owned(),
        id: id(1),
        address: address(1),
        network: acme(),
        network_id: network(),
        membership: MembershipStatus {
            since: ago(80 * 86_400),
            expires: NOW + Duration::from_secs(10 * 86_400),
            renews: true,
        },
        registry: RegistryStatus {
            url: "https://registry.test:8443".to_owned(),
            state: LinkState::Unreachable,
            since: ago(300),
            error: Some("connection refused".to_owned()),
        },
        gateway: Some(gateway()),
        gateways: vec![
            gateway(),
            GatewayStatus {
                id: id(8).did(),
                endpoint: "203.0.113.8:16201".to_owned(),
                state: LinkState::Connecting,
                observed: None,
                rtt_ms: None,
                ..gateway()
            },
        ],
        device: Some("agn0".to_owned()),
        program: None,
        apart: false,
        bound: None,
        peers: 1,
        pending: 1,
    }
}

fn gateway() -> GatewayStatus {
    GatewayStatus {
        id: id(7).did(),
        endpoint: "203.0.113.7:16201".to_owned(),
        carrier: Carrier::Udp,
        proxy: None,
        state: LinkState::Connected,
        since: ago(10_000),
        observed: Some("198.51.100.4:40000".parse().unwrap()),
        rtt_ms: Some(12.34),
    }
}

fn dns() -> Dns {
    Dns {
        mode: "auto".to_owned(),
        owner: "resolv-conf".to_owned(),
        why: "/etc/resolv.conf is a plain file that no program known here keeps".to_owned(),
        state: DnsState::Applied,
        nameservers: vec![address(1).ip()],
        search: vec!["acme.agent".to_owned()],
        domains: vec!["agent".to_owned()],
        device: Some("agentnet0".to_owned()),
        upstream: vec!["192.0.2.1:53".parse().unwrap()],
        ..Dns::default()
    }
}

#[async_trait::async_trait]
impl Control for Fake {
    async fn status(&self) -> Result<Status, Problem> {
        Ok(Status {
            version: "0.1.0".to_owned(),
            now: NOW,
            started: ago(10_800),
            pid: 812,
            udp: vec!["0.0.0.0:16200".parse().unwrap()],
            dns: "resolv-conf".to_owned(),
            agents: vec![agent()],
            stun: vec![],
            port_mapping: None,
            nat_mapping: None,
            drops: BTreeMap::from([("filter_scope".to_owned(), 3)]),
            warnings: vec![Warning {
                code: "registry_unreachable".to_owned(),
                text: "the registry is not reachable for 5 min; trust that stands goes on"
                    .to_owned(),
                cure: "check that this host can reach https://registry.test:8443".to_owned(),
            }],
        })
    }

    async fn netcheck(&self) -> Result<NetcheckTargets, Problem> {
        Ok(NetcheckTargets::default())
    }

    async fn dns(&self) -> Result<Dns, Problem> {
        Ok(dns())
    }

    async fn dns_apply(&self) -> Result<Dns, Problem> {
        Ok(dns())
    }

    async fn dns_revert(&self) -> Result<Dns, Problem> {
        Ok(Dns {
            state: DnsState::Reverted,
            ..dns()
        })
    }

    async fn peers(&self, _: OfAgent) -> Result<Peers, Problem> {
        Ok(Peers {
            now: NOW,
            peers: vec![Peer {
                name: "b.acme.agent".to_owned(),
                id: id(2),
                address: address(2),
                agent: "planner.acme.agent".to_owned(),
                state: SessionState::Up,
                path: Some(PathKind::Relay),
                suite: None,
                last_handshake: Some(ago(60)),
                last_inbound: Some(ago(3)),
                rx_bytes: 1_234_567,
                tx_bytes: 999,
                inbound: Some(Scope::replies_only()),
                outbound: Some("tcp/8000".parse().unwrap()),
            }],
            wireguard: vec![wireguard(&TunnelSecret::from_seed([5; 32]))],
        })
    }

    async fn whois(&self, query: WhoisQuery) -> Result<Whois, Problem> {
        if query.address != address(2).ip() {
            return Err(Problem::with(Code::NotFound, query.address));
        }
        Ok(Whois {
            name: "b.acme.agent".to_owned(),
            id: id(2),
            address: address(2),
            network: acme(),
            network_id: network(),
            local: false,
            tags: vec!["build".parse().unwrap()],
            membership_expires: NOW,
            inbound: None,
            outbound: Some(Scope::Any),
        })
    }

    async fn trust_pending(&self, _: OfAgent) -> Result<Pending, Problem> {
        Ok(Pending {
            now: NOW,
            incoming: vec![PendingRequest {
                name: "a.acme.agent".to_owned(),
                id: Some(id(3)),
                address: Some(address(3)),
                agent: "planner.acme.agent".to_owned(),
                offers: Scope::replies_only(),
                reason: Some("to \u{1b}[2J read your page".to_owned()),
                since: ago(2),
                expires: NOW + Duration::from_secs(7 * 86_400),
            }],
            outgoing: Vec::new(),
        })
    }

    async fn trust_list(&self, _: OfAgent) -> Result<TrustList, Problem> {
        Ok(TrustList {
            now: NOW,
            trust: Vec::new(),
        })
    }

    async fn trust_request(&self, request: TrustRequest) -> Result<TrustChanged, Problem> {
        Ok(changed(
            &request.name,
            TrustChange::Requested,
            Some(request.allow),
        ))
    }

    async fn trust_await(&self, wait: TrustAwait) -> Result<TrustStands, Problem> {
        // Agent b agrees when it is waited for the second time, others never.
        let stands = self.awaited.fetch_add(1, Ordering::Relaxed) > 0 && wait.name == "b";
        if !stands && wait.name != "b" {
            tokio::time::sleep(Duration::from_millis(wait.timeout_ms)).await;
        }
        let name = format!("{}.acme.agent", wait.name);
        Ok(TrustStands { name, stands })
    }

    async fn trust_approve(&self, approve: TrustApprove) -> Result<TrustChanged, Problem> {
        Ok(changed(
            &approve.name,
            TrustChange::Approved,
            Some(approve.allow),
        ))
    }

    async fn trust_deny(&self, deny: TrustName) -> Result<TrustChanged, Problem> {
        Ok(changed(&deny.name, TrustChange::Denied, None))
    }

    async fn trust_revoke(&self, _: TrustName) -> Result<TrustChanged, Problem> {
        Err(Problem::with(Code::NotFound, "no consent to b stands"))
    }

    async fn auto_list(&self, _: OfAgent) -> Result<AutoRules, Problem> {
        Ok(AutoRules { rules: Vec::new() })
    }

    async fn auto_add(&self, rule: AutoRule) -> Result<AutoRules, Problem> {
        Ok(AutoRules { rules: vec![rule] })
    }

    async fn auto_remove(&self, _: AutoRemove) -> Result<AutoRules, Problem> {
        Ok(AutoRules { rules: Vec::new() })
    }

    async fn wireguard_list(&self, _: OfAgent) -> Result<WireGuardPeers, Problem> {
        Ok(WireGuardPeers {
            now: NOW,
            own: vec![wireguard_own()],
            peers: Vec::new(),
        })
    }

    async fn wireguard_add(&self, add: WireGuardAdd) -> Result<WireGuardAdded, Problem> {
        let peer = WireGuardPeer {
            key: add.key,
            preshared_key: add.preshared_key.is_some(),
            endpoint: add.endpoint,
            inbound: add.allow,
            ..wireguard(&TunnelSecret::from_seed([5; 32]))
        };
        let own = wireguard_own();
        Ok(WireGuardAdded { peer, own })
    }

    async fn wireguard_remove(&self, remove: WireGuardRemove) -> Result<WireGuardRemoved, Problem> {
        match remove.peer {
            WireGuardRef::Address(address) => Err(Problem::with(Code::NotFound, address)),
            WireGuardRef::Key(key) => {
                let address = address(5);
                Ok(WireGuardRemoved { key, address })
            }
        }
    }

    async fn path(&self, query: PathQuery) -> Result<PathReport, Problem> {
        if query.name == "stranger" {
            return Err(Problem::with(Code::NotFound, "no trust with it"));
        }
        let endpoint = |at: &str, kind| Endpoint {
            at: at.parse().unwrap(),
            kind,
        };
        let failed = |remote: &str| PathPair {
            path: PathKind::Direct,
            in_use: false,
            state: PairState::Failed,
            family: Some(Family::IPv6),
            local: None,
            remote: Some(endpoint(remote, EndpointKind::Host)),
            carrier: None,
            gateway: None,
            rtt_ms: None,
            loss_percent: Some(100),
            mtu: None,
            last_inbound: None,
            penalized_until: None,
        };
        let relay = PathPair {
            path: PathKind::Relay,
            in_use: true,
            state: PairState::Answering,
            family: Some(Family::IPv4),
            local: Some(endpoint("198.51.100.4:40000", EndpointKind::Reflexive)),
            remote: Some(endpoint("203.0.113.7:16201", EndpointKind::Gateway)),
            carrier: Some(Carrier::Udp),
            gateway: Some(id(7).did()),
            rtt_ms: Some(12.34),
            loss_percent: Some(0),
            last_inbound: Some(ago(3)),
            ..failed("[::]:0")
        };
        Ok(PathReport {
            now: NOW,
            name: format!("{}.acme.agent", query.name),
            address: address(2),
            agent: "planner.acme.agent".to_owned(),
            state: SessionState::Up,
            mode: "auto".to_owned(),
            path: Some(PathKind::Relay),
            since: ago(60),
            why: Why {
                code: "first".to_owned(),
                text: "nothing nearer has answered yet".to_owned(),
            },
            not_direct: Some(Warning {
                code: "no_answer".to_owned(),
                text: "no endpoint of the peer answers".to_owned(),
                cure: "open the UDP port".to_owned(),
            }),
            local: vec![endpoint("198.51.100.4:40000", EndpointKind::Reflexive)],
            pairs: vec![relay, failed("[2001:db8::7]:16200")],
        })
    }

    async fn ping(&self, ping: PingRequest) -> Result<PingReply, Problem> {
        let outcome = match (ping.name.as_str(), ping.tcp) {
            ("silent", _) => PingOutcome::NoAnswer,
            (_, None) => PingOutcome::Answered,
            (_, Some(8000)) => PingOutcome::Open,
            (_, Some(_)) => PingOutcome::Refused,
        };
        let answered = outcome != PingOutcome::NoAnswer;
        Ok(PingReply {
            name: format!("{}.acme.agent", ping.name),
            address: address(2),
            outcome,
            rtt_ms: answered.then_some(4.2),
            path: answered.then_some(match ping.name.as_str() {
                "near" => PathKind::Direct,
                _ => PathKind::Relay,
            }),
            hint: None,
        })
    }

    async fn capture(&self, _: CaptureQuery) -> Result<Pieces, Problem> {
        Err(Problem::new(Code::NotFound))
    }

    async fn log(&self) -> Result<LogLines, Problem> {
        Ok(LogLines::default())
    }

    async fn metrics(&self) -> Result<Metrics, Problem> {
        Ok(Metrics::default())
    }

    async fn join(&self, join: JoinRequest) -> Result<Joined, Problem> {
        if join.token != "agn1_token" {
            return Err(Problem::new(Code::TokenExpired));
        }
        let name = join
            .name
            .map_or_else(|| "any".to_owned(), |n| n.to_string());
        Ok(Joined {
            name: format!("{name}.acme.agent"),
            id: id(1),
            address: address(1),
            network: acme(),
            network_id: network(),
            expires: NOW,
            running: true,
        })
    }

    async fn leave(&self, _: OfAgent) -> Result<Left, Problem> {
        Err(Problem::with(Code::Unreachable, "the registry"))
    }

    async fn down(&self) -> Result<Down, Problem> {
        self.stop.notify_one();
        Ok(Down { stopping: true })
    }
}
