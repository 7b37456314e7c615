use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use reqwest::Response;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{line, raw};
use crate::id::UnixTime;
use crate::wire::api::local::CaptureQuery;
use crate::wire::ip::{Ipv6View, Transport};
use crate::wire::pcapng::{Malformed, Packet, Reader};

/// Show agents' own packets in the clear as they pass, and those dropped with the reason
#[derive(Args, Debug)]
#[command(after_help = "\
Packets are seen where programs see them, at the agent's network device: what came encrypted is in the clear. Where the \
kernel merges segments, one packet may be longer than the network carries, and its checksum not yet filled in. What is \
dropped before it could be opened is not there: agentnet status counts it. Takes root or group agentnet.

With -w, a file for tcpdump -r and Wireshark (pcapng), where a dropped packet has the reason as comment.")]
pub(super) struct CaptureArgs {
    /// Show packets of this agent of the node only
    #[arg(long, value_name = "NAME")]
    agent: Option<String>,

    /// Show packets from and to this agent only
    #[arg(long, value_name = "NAME")]
    peer: Option<String>,

    /// End after N packets
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,

    /// Write packets to FILE, or to standard output when it is -, instead of showing them
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// Where packets go.
enum Sink {
    File(File),
    Show,
    Stdout,
}

impl CaptureArgs {
    pub(super) async fn run(self, context: &Context) -> Result<(), Failure> {
        let mut sink = match self.write {
            None => Sink::Show,
            Some(path) if path.as_os_str() == "-" => Sink::Stdout,
            Some(path) => Sink::File(create(&path)?),
        };
        let query = CaptureQuery {
            agent: self.agent,
            peer: self.peer,
            count: self.count,
        };
        let client = context.client()?;
        let mut pieces = client.stream("/v1/capture", &query).await?;
        context.out.note("capturing; Ctrl-C ends it");
        let mut reader = Reader::default();
        let (mut packets, mut lost) = (0_u64, 0_u64);
        let mut asked = Asked::new()?;
        while let Some(piece) = asked.or(&mut pieces).await? {
            let found = reader.take(&piece).map_err(strange)?;
            packets += found.len() as u64;
            lost += found.iter().map(|packet| packet.lost).sum::<u64>();
            sink.take(&piece, &found, context)?;
        }
        let lost = match lost {
            0 => String::new(),
            lost => format!(", {lost} lost for want of room"),
        };
        context.out.note(&format!("{packets} packets{lost}"));
        Ok(())
    }
}

/// The wish to end.
struct Asked {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Asked {
    fn new() -> Result<Self, Failure> {
        let failed =
            |error| Failure::new(Exit::Failed, format!("cannot listen for signals: {error}"));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// Returns the next piece; None at the end, or when the end was asked for.
    async fn or(&mut self, pieces: &mut Response) -> Result<Option<Vec<u8>>, Failure> {
        tokio::select! {
            _ = self.interrupt.recv() => Ok(None),
            _ = self.terminate.recv() => Ok(None),
            piece = pieces.chunk() => match piece {
                Ok(piece) => Ok(piece.map(Vec::from)),
                Err(_) => Err(Failure::new(Exit::Unreachable, "the node stopped")),
            },
        }
    }
}

impl Sink {
    fn take(&mut self, piece: &[u8], packets: &[Packet], context: &Context) -> Result<(), Failure> {
        match self {
            Self::File(file) => file.write_all(piece).map_err(|error| {
                let what = format!("cannot write packets: {error}");
                Failure::new(Exit::Failed, what).hint("free some space on that disk")
            }),
            Self::Stdout => raw(piece),
            Self::Show => {
                let mut lines = packets.iter();
                lines.try_for_each(|packet| line(&shown(packet, context.out.json)))
            }
        }
    }
}

/// Makes a file that nobody else reads: it holds what was said in confidence.
fn create(path: &Path) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    let made = options.write(true).create(true).truncate(true).mode(0o600);
    made.open(path).map_err(|error| {
        let what = format!("cannot write {}: {error}", path.display());
        Failure::new(Exit::Failed, what).hint("name another place with -w FILE")
    })
}

fn strange(_: Malformed) -> Failure {
    Failure::new(Exit::Failed, "the node's answer makes no sense")
        .hint("the node may be of another version: restart it (agentnet version tells both)")
}

/// Returns one packet as a line.
fn shown(packet: &Packet, is_json: bool) -> String {
    let at = UnixTime::from_millis(packet.nanos / 1_000_000);
    let way = if packet.is_inbound { "in" } else { "out" };
    let (from, to, what) = described(&packet.bytes);
    if is_json {
        let facts = serde_json::json!({
            "v": 1, "at": at, "agent": packet.interface, "way": way, "from": from, "to": to,
            "what": what, "length": packet.bytes.len(), "comment": packet.comment, "lost": packet.lost,
        });
        return facts.to_string();
    }
    let comment = packet.comment.as_ref();
    let comment = comment.map_or_else(String::new, |text| format!("  {text}"));
    let length = packet.bytes.len();
    format!(
        "{at} {} {way:<3} {from} > {to} {what}, {length} bytes{comment}",
        packet.interface
    )
}

/// Returns both ends of a packet and what it is.
fn described(bytes: &[u8]) -> (String, String, &'static str) {
    let Ok(view) = Ipv6View::parse(bytes) else {
        return ("?".to_owned(), "?".to_owned(), "no packet of the overlay");
    };
    let (ports, what) = match view.transport() {
        Transport::Tcp(tcp) => (Some(tcp.ports), "TCP"),
        Transport::Udp(ports) => (Some(ports), "UDP"),
        Transport::Icmp6Echo { .. } => (None, "ping"),
        Transport::Icmp6Error(_) => (None, "ICMPv6 error"),
        Transport::Icmp6Other(_) => (None, "ICMPv6"),
        Transport::LaterFragment => (None, "fragment"),
        Transport::NoNext => (None, "empty"),
        Transport::Other(_) => (None, "other"),
    };
    let end = |ip: std::net::Ipv6Addr, port: Option<u16>| match port {
        Some(port) => format!("[{ip}]:{port}"),
        None => ip.to_string(),
    };
    let from = end(view.source(), ports.map(|ports| ports.source));
    let to = end(view.destination(), ports.map(|ports| ports.destination));
    (from, to, what)
}

/// A capture may go on for as long as anybody wants.
pub(super) const ENDLESS: Duration = Duration::from_secs(10 * 365 * 86_400);
