//! Everything that touches the machine: devices, sockets, files, clock.

pub mod clock;
pub mod cpu;
pub mod dns;
pub mod files;
pub mod host;
pub mod link;
pub mod lock;
pub mod multicast;
pub mod namespace;
pub mod passing;
pub mod paths;
pub mod portmap;
pub mod random;
pub mod realtime;
pub mod route;
pub mod sandbox;
pub mod spare;
pub mod stdio;
pub mod suspend;
pub mod sysctl;
pub mod timer;
pub mod tls;
pub mod tun;
pub mod udp;
pub mod underlay;
pub mod wss;
