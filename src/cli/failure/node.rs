//! What keeps daemons from running and owners from their commands, with the cures.

use std::{
    error::Error,
    io::{self, ErrorKind},
};

use crate::cli::failure::{Exit, Failure};
use crate::gateway::server;
use crate::node::agent::DeviceError;
use crate::node::alone::AloneError;
use crate::node::by_daemon::CarryError;
use crate::node::daemon::DaemonError;
use crate::node::dev::DevError;
use crate::node::gateway::GatewayError;
use crate::node::join::JoinError;
use crate::node::local_api::SocketError;
use crate::node::owner::OwnerError;
use crate::node::run::RunError;
use crate::node::store::StoreError;
use crate::os::files::trouble;
use crate::os::namespace::Obstacle;
use crate::os::route::RouteError;
use crate::os::sysctl::SysctlError;
use crate::os::tun::TunError;
use crate::os::udp::UdpError;
use crate::registry::init::InitError;
use crate::registry::server::ServeError;
use crate::wire::api::problem::Problem;

/// Cure of a missing capability.
const NET_ADMIN: &str = "run as root, or give the program CAP_NET_ADMIN";

impl Failure {
    /// A command that could not be done, with the cure if there is a usual one.
    fn cured(error: &(dyn Error + 'static), cure: Option<&str>) -> Self {
        Self {
            hint: cure.map(str::to_owned),
            ..Self::of(Exit::Failed, error)
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::File(error) => error.into(),
            StoreError::Lock(error) => error.into(),
        }
    }
}

impl From<JoinError> for Failure {
    fn from(error: JoinError) -> Self {
        let hint = match &error {
            JoinError::NameNeeded(_) => Some("choose a name with --name NAME"),
            JoinError::NameNotAllowed { .. } => {
                Some("choose another with --name, or ask for a token that allows this one")
            }
            JoinError::AlreadyMember(_) => Some("see agentnet status; agentnet leave ends it"),
            JoinError::ClockBehind(_) => Some("set the clock of this machine"),
            JoinError::BadPin
            | JoinError::Chain(_)
            | JoinError::Refused(_)
            | JoinError::Registry(_)
            | JoinError::Statement(_)
            | JoinError::Token(_)
            | JoinError::WrongRegistry => None,
        };
        let failure = Self::from(Problem::from(error));
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl From<AloneError> for Failure {
    fn from(error: AloneError) -> Self {
        let (exit, hint) = match error {
            AloneError::Join(error) => return error.into(),
            AloneError::Store(error) => return error.into(),
            AloneError::NoAgents => (Exit::NotFound, "join a network: agentnet join"),
            AloneError::NoSuchAgent(_) => (Exit::NotFound, "--state names where it is kept"),
            AloneError::Several(_) => (Exit::Usage, "choose one with --agent NAME"),
        };
        Self::of(exit, &error).hint(hint)
    }
}

impl From<DevError> for Failure {
    fn from(error: DevError) -> Self {
        match error {
            DevError::Config(error) => error.into(),
            DevError::Daemon(error) => error.into(),
            DevError::File(error) => error.into(),
            DevError::Gateway(error) => error.into(),
            DevError::Init(error) => error.into(),
            DevError::Join(error) => error.into(),
            DevError::Owner(error) => error.into(),
            DevError::Serve(error) => error.into(),
            DevError::Store(error) => error.into(),
            DevError::Token(error) => error.into(),
            DevError::Ended => Self::cured(&error, Some("the log above says why")),
        }
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        let code = code_of_daemon(&error);
        let cure = match &error {
            DaemonError::Udp(error) => cure_of_udp(error),
            DaemonError::Device(error) => cure_of_device(error),
            DaemonError::Resolver(_, source) if source.kind() == ErrorKind::PermissionDenied => {
                Some("run as root, or give the program CAP_NET_BIND_SERVICE")
            }
            DaemonError::Resolver(..) => Some(
                "another program has port 53 of every address (ss -lnup shows it): stop or narrow it",
            ),
            DaemonError::Dataplane(_)
            | DaemonError::Dns(_)
            | DaemonError::Socket(_)
            | DaemonError::Stopped(_)
            | DaemonError::Store(_)
            | DaemonError::Timer(_) => None,
            DaemonError::Metrics(..) => Some("name a free address of this host in metrics.listen"),
            DaemonError::Proxy(_) => Some("see wss.proxy and wss.proxy_file of the settings"),
            DaemonError::Unsaved(_) => Some("free space or mend the disk, then join again"),
        };
        match error {
            DaemonError::Dns(error) => error.into(),
            DaemonError::Store(error) => error.into(),
            DaemonError::Socket(error) => error.into(),
            DaemonError::Dataplane(_)
            | DaemonError::Device(_)
            | DaemonError::Metrics(..)
            | DaemonError::Resolver(..)
            | DaemonError::Stopped(_)
            | DaemonError::Timer(_)
            | DaemonError::Udp(_)
            | DaemonError::Proxy(_)
            | DaemonError::Unsaved(_) => Self {
                code,
                ..Self::cured(&error, cure)
            },
        }
    }
}

/// Names what keeps a node from running as `agentnet doctor` does.
fn code_of_daemon(error: &DaemonError) -> Option<&'static str> {
    match error {
        DaemonError::Device(error) => code_of_device(error),
        DaemonError::Resolver(_, source) if source.kind() == ErrorKind::PermissionDenied => {
            Some("port_denied")
        }
        DaemonError::Resolver(_, source) if source.kind() == ErrorKind::AddrInUse => {
            Some("port_taken")
        }
        DaemonError::Udp(UdpError::PortInUse(_)) => Some("port_taken"),
        DaemonError::Udp(UdpError::Denied(_)) => Some("port_denied"),
        DaemonError::Unsaved(_) => Some("state_unsaved"),
        DaemonError::Dataplane(_)
        | DaemonError::Dns(_)
        | DaemonError::Metrics(..)
        | DaemonError::Proxy(_)
        | DaemonError::Resolver(..)
        | DaemonError::Socket(_)
        | DaemonError::Stopped(_)
        | DaemonError::Store(_)
        | DaemonError::Timer(_)
        | DaemonError::Udp(UdpError::Os { .. }) => None,
    }
}

fn code_of_device(error: &DeviceError) -> Option<&'static str> {
    match error {
        DeviceError::Tun(TunError::Denied | TunError::Unopened)
        | DeviceError::Route(RouteError::Denied) => Some("tun_denied"),
        DeviceError::Tun(TunError::NoDevice) => Some("tun_missing"),
        DeviceError::Route(RouteError::PrefixRouted { .. }) => Some("prefix_routed"),
        DeviceError::Route(RouteError::AddressTaken { .. }) => Some("address_taken"),
        DeviceError::Route(RouteError::Sysctl(_)) => Some("no_ipv6"),
        DeviceError::Names(_)
        | DeviceError::Route(_)
        | DeviceError::Stopped(_)
        | DeviceError::Tun(_)
        | DeviceError::Watch(_) => None,
    }
}

fn cure_of_udp(error: &UdpError) -> Option<&'static str> {
    match error {
        UdpError::PortInUse(_) => {
            Some("stop that program (ss -lnup shows it), or choose another port")
        }
        UdpError::Denied(_) => Some("ports below 1024 need root or CAP_NET_BIND_SERVICE"),
        UdpError::Os { .. } => None,
    }
}

fn cure_of_device(error: &DeviceError) -> Option<&'static str> {
    match error {
        DeviceError::Tun(TunError::Denied) | DeviceError::Route(RouteError::Denied) => {
            Some(NET_ADMIN)
        }
        DeviceError::Tun(TunError::Unopened) => Some(
            "as root: chmod 0666 /dev/net/tun, as udev does; a container needs --device /dev/net/tun",
        ),
        DeviceError::Tun(TunError::NoDevice) => {
            Some("load it with `modprobe tun`; a container needs --device /dev/net/tun")
        }
        DeviceError::Route(RouteError::PrefixRouted { .. }) => {
            Some("remove that route (ip -6 route), or stop what made it")
        }
        DeviceError::Route(RouteError::AddressTaken { .. }) => {
            Some("take it from that device (ip -6 address del), or stop the node that has it")
        }
        DeviceError::Route(RouteError::Sysctl(SysctlError::Stuck { .. })) => {
            Some("have that setting changed, or /proc/sys mounted for writing")
        }
        DeviceError::Names(_)
        | DeviceError::Route(_)
        | DeviceError::Stopped(_)
        | DeviceError::Tun(_)
        | DeviceError::Watch(_) => None,
    }
}

impl From<SocketError> for Failure {
    fn from(error: SocketError) -> Self {
        let cure = match &error {
            SocketError::InUse(_) => Some(
                "an agentnet is running there: stop it (agentnet down), or name another --socket",
            ),
            SocketError::NotASocket(_) => Some("name another place with --socket PATH"),
            SocketError::Io { source, .. } if trouble(source).is_some() => {
                Some("name a place that can be written with --socket PATH")
            }
            SocketError::Given(_) | SocketError::Io { .. } => None,
        };
        let code = match &error {
            SocketError::InUse(_) => Some("node_elsewhere"),
            SocketError::Io { source, .. } => trouble(source).map(|(code, _)| code),
            SocketError::Given(_) | SocketError::NotASocket(_) => None,
        };
        Self {
            code,
            ..Self::cured(&error, cure)
        }
    }
}

impl From<GatewayError> for Failure {
    fn from(error: GatewayError) -> Self {
        let cure = match &error {
            GatewayError::Exists(_) => Some("name another --dir, or serve that one"),
            GatewayError::Missing(_) => Some("make one: agentnet gateway init"),
            GatewayError::NeedsAddress(_) => Some("add --advertise HOST:PORT"),
            GatewayError::BadPin => Some("ask for the token again, and keep it in one piece"),
            GatewayError::Server(server::GatewayError::Listen { source, .. }) => {
                cure_of_udp(source)
            }
            GatewayError::Certificate(_) => {
                Some("wss.certificate and wss.key are PEM files that fit each other")
            }
            GatewayError::Peering { .. } | GatewayError::PeeringFile { .. } => {
                Some("each of peering.files is what `agentnet gateway peering` printed elsewhere")
            }
            GatewayError::OwnDomain(_) => {
                Some("gateways of one domain find each other; take it out of peering.files")
            }
            GatewayError::Metrics { .. } => {
                Some("name a free address of this host in metrics.listen")
            }
            GatewayError::NoGateways => Some("start a gateway of this domain, and try again"),
            GatewayError::File(_)
            | GatewayError::Lock(_)
            | GatewayError::Registry(_)
            | GatewayError::Server(_)
            | GatewayError::Socket(_)
            | GatewayError::Statement(_) => None,
        };
        match error {
            GatewayError::File(error) => error.into(),
            GatewayError::Lock(error) => error.into(),
            GatewayError::Registry(error) => (*error).into(),
            GatewayError::Socket(error) => error.into(),
            GatewayError::NeedsAddress(_) => Self {
                exit: Exit::Usage,
                ..Self::cured(&error, cure)
            },
            GatewayError::BadPin
            | GatewayError::Certificate(_)
            | GatewayError::Exists(_)
            | GatewayError::Missing(_)
            | GatewayError::Metrics { .. }
            | GatewayError::NoGateways
            | GatewayError::OwnDomain(_)
            | GatewayError::Peering { .. }
            | GatewayError::PeeringFile { .. }
            | GatewayError::Server(_)
            | GatewayError::Statement(_) => Self::cured(&error, cure),
        }
    }
}

impl From<Obstacle> for Failure {
    fn from(error: Obstacle) -> Self {
        Self {
            code: Some(error.cause.as_str()),
            ..Self::cured(&error, error.cause.hint())
        }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Alone(error) => error.into(),
            RunError::Carry(CarryError::Refused(problem)) => problem.into(),
            RunError::Carry(CarryError::Strange(..)) => Self::cured(
                &error,
                Some("have the daemon be of the same version: agentnet down"),
            ),
            RunError::Daemon(error) => error.into(),
            RunError::Obstacle(error) => error.into(),
            RunError::Asked(_) | RunError::HostNet(_) | RunError::Stopped => {
                Self::cured(&error, None)
            }
        }
    }
}

impl From<OwnerError> for Failure {
    fn from(error: OwnerError) -> Self {
        let (exit, hint) = match error {
            OwnerError::File(error) => return error.into(),
            OwnerError::Lock(error) => return error.into(),
            OwnerError::Registry(error) => return (*error).into(),
            OwnerError::Exists(_) => (Exit::Failed, Some("see agentnet network list")),
            OwnerError::NoNetwork(_) => (
                Exit::NotFound,
                Some("see agentnet network list; --state names the directory that holds its key"),
            ),
            OwnerError::Unfinished(_) => (
                Exit::Failed,
                Some("finish it: agentnet network create with the same name"),
            ),
            OwnerError::NoAgent(..) => (
                Exit::NotFound,
                Some(
                    "name it as its peers do, or by the key that agentnet peers --json or its own agentnet status shows",
                ),
            ),
            OwnerError::Unproven(..) => (
                Exit::Failed,
                Some(
                    "compare that key with the one a peer's agentnet peers --json shows, then revoke by the key",
                ),
            ),
            OwnerError::NoToken(_) => (Exit::NotFound, Some("see agentnet token list")),
            OwnerError::WrongPrefix(_) => (Exit::Denied, Some("ask the registry's operator")),
            OwnerError::Chain(_) => (
                Exit::Usage,
                Some("give at most 32 names and tags, each name of one label: planner or worker-*"),
            ),
            OwnerError::Statement(_) | OwnerError::Tls(_) => (Exit::Failed, None),
        };
        let mut failure = Self::of(exit, &error);
        failure.hint = hint.map(str::to_owned);
        failure
    }
}

impl From<InitError> for Failure {
    fn from(error: InitError) -> Self {
        let (exit, hint) = match error {
            InitError::File(error) => return error.into(),
            InitError::Exists(_) => (Exit::Failed, Some("name another --dir, or serve that one")),
            InitError::NeedsUrl(_) => (Exit::Usage, Some("add --url https://HOST:PORT")),
            InitError::BadUrl(_) => (Exit::Usage, None),
            InitError::Statement(_) | InitError::Store(_) | InitError::Tls(_) => {
                (Exit::Failed, None)
            }
        };
        let mut failure = Self::of(exit, &error);
        failure.hint = hint.map(str::to_owned);
        failure
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::File(error) => error.into(),
            ServeError::Lock(error) => error.into(),
            ServeError::Listen { ref source, .. } => listen_failed(&error, source),
            ServeError::Server(_) | ServeError::Store(_) | ServeError::Tls(_) => {
                Self::of(Exit::Failed, &error)
            }
        }
    }
}

/// Tells why a socket cannot be bound, and the cure for the usual causes.
fn listen_failed(error: &(dyn Error + 'static), cause: &io::Error) -> Failure {
    let cures = [
        (
            ErrorKind::AddrInUse,
            "another program has that port (ss -lnp shows it); stop it or choose another",
        ),
        (
            ErrorKind::AddrNotAvailable,
            "this host does not have that address (ip address shows those it has)",
        ),
        (
            ErrorKind::PermissionDenied,
            "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        ),
    ];
    let cure = cures.iter().find(|(kind, _)| *kind == cause.kind());
    let exit = if cause.kind() == ErrorKind::PermissionDenied {
        Exit::Denied
    } else {
        Exit::Failed
    };
    Failure {
        hint: cure.map(|(_, hint)| (*hint).to_owned()),
        ..Failure::of(exit, error)
    }
}
