//! Writes the man pages, dated, and the completions of bash, zsh and fish: `manual DIR DATE`. scripts/package
//! runs it.

use std::{env, fs, io, path::Path, path::PathBuf, process::ExitCode};

use clap::Command;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

const SECTION: &str = "1";

/// What people type, below the page that shows it.
pub(crate) const EXAMPLES: [(&str, &[&str]); 22] = [
    (
        "agentnet",
        &[
            "agentnet join --token-file acme.token --name planner",
            "agentnet trust request worker.acme.agent --reason 'to hand out work'",
            "agentnet status",
        ],
    ),
    (
        "agentnet-agent-revoke",
        &["agentnet agent revoke acme planner"],
    ),
    (
        "agentnet-bugreport",
        &[
            "agentnet bugreport",
            "agentnet bugreport --out - --no-network",
        ],
    ),
    (
        "agentnet-capture",
        &[
            "agentnet capture --peer worker",
            "agentnet capture -c 1000 -w agent.pcapng",
        ],
    ),
    ("agentnet-connect", &["agentnet connect worker:5432"]),
    (
        "agentnet-dev",
        &["agentnet dev --ip 10.77.0.1 --network acme --name a"],
    ),
    (
        "agentnet-doctor",
        &["agentnet doctor", "agentnet doctor --json --no-network"],
    ),
    (
        "agentnet-gateway-init",
        &[
            "agentnet gateway init --dir /var/lib/agentnet-gateway --listen 198.51.100.1:16201 --wss 198.51.100.1:443 --operator-token-file operator.token",
        ],
    ),
    (
        "agentnet-gateway-status",
        &["agentnet gateway status --config /var/lib/agentnet-gateway/gateway.toml"],
    ),
    (
        "agentnet-join",
        &[
            "agentnet join --token-file acme.token --name planner",
            "agentnet join --token-file -",
        ],
    ),
    (
        "agentnet-network-create",
        &["agentnet network create acme --operator-token-file operator.token"],
    ),
    (
        "agentnet-ping",
        &[
            "agentnet ping worker",
            "agentnet ping worker.acme.agent tcp/8000",
        ],
    ),
    ("agentnet-path", &["agentnet path worker"]),
    (
        "agentnet-registry-init",
        &[
            "agentnet registry init --dir /var/lib/agentnet-registry --listen 10.0.0.5:8443 --url https://registry.example.org:8443",
        ],
    ),
    (
        "agentnet-serve",
        &[
            "agentnet serve tcp/8000",
            "agentnet serve tcp/8000 --to 127.0.0.1:3000",
            "agentnet serve tcp/5432 --to unix:/run/postgresql/.s.PGSQL.5432",
        ],
    ),
    (
        "agentnet-token-create",
        &[
            "agentnet token create acme --name planner --out acme.token",
            "agentnet token create acme --name 'worker-*' --uses 20 --expires 1d",
        ],
    ),
    (
        "agentnet-trust-approve",
        &["agentnet trust approve planner --allow tcp/8000 --allow udp/5000-5010"],
    ),
    (
        "agentnet-trust-auto-add",
        &["agentnet trust auto add --from 'worker-*' --allow tcp/8000"],
    ),
    (
        "agentnet-trust-request",
        &["agentnet trust request worker.acme.agent --reason 'to hand out work'"],
    ),
    (
        "agentnet-trust-revoke",
        &["agentnet trust revoke worker.acme.agent"],
    ),
    (
        "agentnet-up",
        &["agentnet up", "agentnet up --dns none --path relay"],
    ),
    ("agentnet-whois", &["agentnet whois fd0a:1:2:3::4"]),
];

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let (Some(dir), Some(date)) = (args.next().map(PathBuf::from), args.next()) else {
        return ExitCode::from(2);
    };
    match write(&dir, &agentnet::cli::command(), &date) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => panic!("cannot write to {}: {error}", dir.display()),
    }
}

/// Writes `man/*.1` and `completions/` into a directory, which need not exist yet.
pub(crate) fn write(dir: &Path, command: &Command, date: &str) -> io::Result<()> {
    let man = dir.join("man");
    fs::create_dir_all(&man)?;
    for page in pages(command, date)? {
        fs::write(man.join(page.name + "." + SECTION), page.text)?;
    }
    let completions = dir.join("completions");
    fs::create_dir_all(&completions)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut command.clone(), "agentnet", &completions)?;
    }
    Ok(())
}

/// A man page.
pub(crate) struct Page {
    /// Without the section: `agentnet-trust-list`.
    pub(crate) name: String,
    text: Vec<u8>,
}

/// Returns a page for each command that help shows, and one for the program.
pub(crate) fn pages(command: &Command, date: &str) -> io::Result<Vec<Page>> {
    let mut command = command.clone();
    command.build();
    let mut pages = Vec::new();
    add_pages(&command, None, date, &mut pages)?;
    Ok(pages)
}

/// Returns the examples of a page.
fn examples(page: &str) -> &'static [&'static str] {
    EXAMPLES
        .iter()
        .find(|(name, _)| *name == page)
        .map_or(&[], |(_, lines)| lines)
}

fn add_pages(
    command: &Command,
    above: Option<&str>,
    date: &str,
    pages: &mut Vec<Page>,
) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or("agentnet").to_owned();
    let shown = command.get_subcommands().filter(|c| !c.is_hide_set());
    let below = shown.collect::<Vec<_>>();

    let man = Man::new(command.clone())
        .date(date)
        .source(concat!("agentnet ", env!("CARGO_PKG_VERSION")))
        .manual("agentnet");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if !below.is_empty() {
        man.render_subcommands_section(&mut text)?;
    }
    ending(&name, above, &below).to_writer(&mut text)?;
    let own = name.clone();
    pages.push(Page { name, text });
    for inner in below {
        add_pages(inner, Some(&own), date, pages)?;
    }
    Ok(())
}

/// What follows the sections that come from the command line's own description.
fn ending(name: &str, above: Option<&str>, below: &[&Command]) -> Roff {
    let mut end = Roff::new();
    end.control("SH", ["EXIT STATUS"]);
    end.text([roman(
        "0 done, 1 failed, 2 usage, 3 denied, 4 not found, 5 unreachable",
    )]);
    let examples = examples(name);
    if !examples.is_empty() {
        end.control("SH", ["EXAMPLES"]);
        for (at, line) in examples.iter().enumerate() {
            if at > 0 {
                end.control("PP", []);
            }
            end.text([bold(*line)]);
        }
    }
    let below = below.iter().filter_map(|c| c.get_display_name());
    let others = above.into_iter().chain(below);
    let others = others.map(|other| format!("{other}({SECTION})"));
    end.control("SH", ["SEE ALSO"]);
    end.text([roman(others.collect::<Vec<_>>().join(", "))]);
    end
}
