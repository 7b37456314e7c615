//! Scenarios with the real binary and the real kernel, each in private namespaces (no root needed
//! where user namespaces are allowed). Tests of what the kernel does; logic has its own tests.
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod agents;
mod blocked;
mod border;
mod capture;
mod channel;
mod consent;
mod dataplane;
mod discover;
mod dns_clients;
mod doctor;
mod endure;
#[path = "../registry/evil.rs"]
mod evil;
mod evil_registry;
mod flood;
mod full_disk;
mod garbage;
mod grid;
mod homes;
mod host_dns;
mod idle;
mod joining;
mod lab;
mod lessons;
mod mesh;
mod mishaps;
mod motion;
mod moved;
mod mtu;
mod neighbour;
#[path = "../sim/network.rs"]
#[expect(dead_code, reason = "networks here are made by commands")]
mod network;
mod offload;
mod old_kernel;
mod path_command;
mod paths;
mod peering;
mod portmap;
mod process;
mod relayed;
mod reload;
mod reports;
mod revoke;
mod routes;
mod run;
mod seeing;
mod serve;
mod services;
mod sidecar;
mod site;
mod stream;
mod stun;
mod surroundings;
mod topology;
mod traffic;
mod versions;
mod wall_clock;
mod wireguard;
mod workers;
mod world;
mod wss;
