//! Pure: puts stable pseudonyms into a text for whatever tells who or where somebody is, and hides secrets.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Runs of letters and digits this long are keys, hashes or tokens, unless they are words.
const KEY: usize = 32;

/// Hexadecimal digits in a row, apart by dots, that are the zone of a network (RFC 3596 section 2.5).
const NIBBLES: usize = 6;

/// Octets in a row, apart by colons, that are a device's address, or of a certificate's print.
const OCTETS: usize = 6;

/// Where people's files are.
const HOMES: &str = "/home/";

/// Remembers who got which pseudonym.
#[derive(Clone, Debug, Default)]
pub(super) struct Redactor {
    /// What is replaced wherever it stands by itself, in lower case.
    words: BTreeMap<String, String>,
    /// What is replaced wherever it stands, if it ends there, in lower case.
    phrases: BTreeMap<String, String>,
    /// Addresses and keys that were seen.
    seen: BTreeMap<String, String>,
    counts: BTreeMap<&'static str, usize>,
}

impl Redactor {
    /// Takes that `word` is the name of something of a kind.
    pub(super) fn word(&mut self, kind: &'static str, word: &str) {
        let word = word.to_ascii_lowercase();
        if !word.is_empty() && !self.words.contains_key(&word) {
            let pseudonym = self.pseudonym(kind);
            self.words.insert(word, pseudonym);
        }
    }

    /// Takes an agent's full name apart: the network's label stands before the suffix.
    pub(super) fn full_name(&mut self, name: &str, suffix: &str) {
        let end = format!(".{suffix}");
        let labels = name.strip_suffix(&end).unwrap_or(name);
        if let Some((agent, network)) = labels.rsplit_once('.') {
            self.word("network", network);
            agent.split('.').for_each(|label| self.word("agent", label));
        } else if !labels.starts_with("did:") {
            self.word("agent", labels);
        }
    }

    /// Takes that `text`, as a host's name, is replaced wherever it stands.
    pub(super) fn phrase(&mut self, kind: &'static str, text: &str) {
        let text = text.to_ascii_lowercase();
        let is_address = text.starts_with('[') || text.parse::<IpAddr>().is_ok();
        if text.len() > 1 && !is_address && !self.phrases.contains_key(&text) {
            let pseudonym = self.pseudonym(kind);
            self.phrases.insert(text, pseudonym);
        }
    }

    /// Takes that `endpoint`, as `host:port` or a URL, names a host.
    pub(super) fn endpoint(&mut self, endpoint: &str) {
        let bare = endpoint
            .split_once("://")
            .map_or(endpoint, |(_, rest)| rest);
        self.phrase("host", host(bare).0);
    }

    /// Returns `text` without what tells of somebody.
    pub(super) fn redact(&mut self, text: &str) -> String {
        // First, since their names may stand by themselves too, also before.
        let mut text = self.hosts(text);
        let mut phrases = self.phrases.iter().collect::<Vec<_>>();
        phrases.sort_by_key(|(phrase, _)| std::cmp::Reverse(phrase.len()));
        for (phrase, pseudonym) in phrases {
            text = put_for(&text, phrase, pseudonym);
        }
        let text = self.users(&text);
        let is_key =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '/' | '=');
        let text = runs(&text, is_key, |run| self.key(run));
        let is_address = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
        let text = runs(&text, is_address, |run| self.address(run));
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        runs(&text, is_word, |run| {
            self.words.get(&run.to_ascii_lowercase()).cloned()
        })
    }

    /// Hides the hosts of URLs, with what logs in there.
    fn hosts(&mut self, text: &str) -> String {
        let mut parts = text.split("://");
        let mut whole = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (name, rest) = host(part);
            self.phrase("host", name);
            let known = self.phrases.get(&name.to_ascii_lowercase());
            whole.push_str("://");
            whole.push_str(known.map_or(name, String::as_str));
            whole.push_str(rest);
        }
        whole
    }

    /// Hides whose home a path is in.
    fn users(&mut self, text: &str) -> String {
        let mut parts = text.split(HOMES);
        let mut whole = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c));
            let (name, rest) = part.split_at(end.unwrap_or(part.len()));
            whole.push_str(HOMES);
            if !name.is_empty() {
                whole.push_str(&self.of("user", name));
            }
            whole.push_str(rest);
        }
        whole
    }

    fn key(&mut self, run: &str) -> Option<String> {
        let is_token = run.starts_with("agn1_") || run.starts_with("agno1_");
        let is_word = !run
            .chars()
            .any(|c| c.is_ascii_digit() || c.is_ascii_uppercase());
        let is_key = is_token || (run.len() >= KEY && !is_word);
        is_key.then(|| self.of("key", run))
    }

    fn address(&mut self, run: &str) -> Option<String> {
        if !run.contains(['.', ':']) {
            return None;
        }
        let punctuation = ['.', ':'];
        let bare = run.trim_matches(punctuation);
        let all_are = |separator, length, least| {
            let mut groups = bare.split(separator);
            groups.clone().count() >= least && groups.all(|group| group.len() == length)
        };
        let kind = if all_are('.', 1, NIBBLES) {
            Some("zone")
        } else if all_are(':', 2, OCTETS) {
            Some("octets")
        } else {
            None
        };
        if let Some(kind) = kind {
            let (before, after) = run.split_once(bare)?;
            return Some(format!("{before}{}{after}", self.of(kind, bare)));
        }
        // Punctuation may stand before and after, but `::` may begin or end an address.
        let begins = [0, 1, run.len() - run.trim_start_matches(punctuation).len()];
        let end = run.trim_end_matches(punctuation).len();
        let ends = [run.len(), run.len() - 1, end];
        let mut places = begins
            .into_iter()
            .flat_map(|begin| ends.map(|end| (begin, end)));
        let (before, ip, after) = places.find_map(|(begin, end)| {
            let text = run.get(begin..end)?;
            let (ip, port) = match (text.parse::<IpAddr>(), text.parse::<SocketAddr>()) {
                (Ok(ip), _) => (ip, 0),
                (_, Ok(at)) => (at.ip(), text.len() - text.rfind(':')?),
                _ => return None,
            };
            Some((run.get(..begin)?, ip, run.get(end - port..)?))
        })?;
        if ip.is_loopback() || ip.is_unspecified() {
            return None;
        }
        let shown = self.of("ip", &ip.to_string());
        Some(format!("{before}{shown}{after}"))
    }

    fn of(&mut self, kind: &'static str, what: &str) -> String {
        if let Some(known) = self.seen.get(what) {
            return known.clone();
        }
        let pseudonym = self.pseudonym(kind);
        self.seen.insert(what.to_owned(), pseudonym.clone());
        pseudonym
    }

    fn pseudonym(&mut self, kind: &'static str) -> String {
        let count = self.counts.entry(kind).or_default();
        *count += 1;
        format!("{kind}-{count}")
    }
}

/// Takes apart what stands behind `://`: the host, without who logs in there, and what follows it, the port first.
fn host(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| c.is_whitespace() || "/\"'`<>,;)".contains(c));
    let authority = text.get(..end.unwrap_or(text.len())).unwrap_or_default();
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let is_address = host.starts_with('[') || host.parse::<IpAddr>().is_ok();
    let name = match host.rsplit_once(':') {
        Some((name, _)) if !is_address => name,
        Some(_) | None => host,
    };
    let name_ends = authority.len() - host.len() + name.len();
    (name, text.get(name_ends..).unwrap_or_default())
}

/// Replaces `phrase`, which is in lower case, where it is no part of something longer.
fn put_for(text: &str, phrase: &str, pseudonym: &str) -> String {
    // Of the same length, character by character.
    let lower = text.to_ascii_lowercase();
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let (mut out, mut rest) = (String::with_capacity(text.len()), 0);
    for (at, _) in lower.match_indices(phrase) {
        let end = at + phrase.len();
        let (before, after) = (lower.get(..at), lower.get(end..));
        let goes_on = after.is_some_and(|after| after.starts_with(is_part))
            || before.is_some_and(|before| before.ends_with(is_part));
        if goes_on {
            continue;
        }
        out.push_str(text.get(rest..at).unwrap_or_default());
        out.push_str(pseudonym);
        rest = end;
    }
    out.push_str(text.get(rest..).unwrap_or_default());
    out
}

/// Replaces runs of characters that are of one class.
fn runs(
    text: &str,
    is_of: impl Fn(char) -> bool,
    mut replace: impl FnMut(&str) -> Option<String>,
) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(&is_of) {
        let (before, run) = rest.split_at(start);
        let end = run.find(|c| !is_of(c)).unwrap_or(run.len());
        let (run, after) = run.split_at(end);
        out.push_str(before);
        match replace(run) {
            Some(new) => out.push_str(&new),
            None => out.push_str(run),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor() -> Redactor {
        let mut redactor = Redactor::default();
        redactor.full_name("planner.acme.agent", "agent");
        redactor.phrase("host", "gateway.example.org");
        redactor
    }

    #[test]
    fn who_and_where_is_told_by_pseudonyms_that_stay() {
        let mut redactor = redactor();
        for (text, expected) in [
            ("planner.acme.agent is up", "agent-1.network-1.agent is up"),
            ("Planner and acme", "agent-1 and network-1"),
            ("explanner stays", "explanner stays"),
            (
                "at 198.51.100.7:16201, 198.51.100.7.",
                "at ip-1:16201, ip-1.",
            ),
            ("[fd11:0:0:1::2]:80 > fd11:0:0:1::2", "[ip-2]:80 > ip-2"),
            ("fd11:0:0:1::/64 on agn0", "ip-3/64 on agn0"),
            ("https://reg.example.org:8443/x", "https://host-2:8443/x"),
            (
                "reg.example.org and http://u:pw@reg.example.org",
                "host-2 and http://host-2",
            ),
            ("to gateway.example.org:16201", "to host-1:16201"),
            (
                "0.0.0.0:16200 [::]:16200 127.0.0.1",
                "0.0.0.0:16200 [::]:16200 127.0.0.1",
            ),
            ("1.0.0.0.0.0.0.0.1.1.d.f.ip6.arpa", "zone-1.ip6.arpa"),
            (
                "at:198.51.100.7 ip:fd11:0:0:1::, ::1:2",
                "at:ip-1 ip:ip-3, ip-4",
            ),
            ("link 02:42:AC:11:00:02 up", "link octets-1 up"),
            (
                "late.example.net, https://Late.Example.net",
                "host-3, https://host-3",
            ),
            (
                "later.example.net is another",
                "later.example.net is another",
            ),
            ("GATEWAY.example.org:16201/x", "host-1:16201/x"),
            ("wss://[fd11:0:0:1::2]:443/a2g", "wss://[ip-2]:443/a2g"),
            (
                "http://192.0.2.1:3128 in /home/mallory/x",
                "http://ip-5:3128 in /home/user-1/x",
            ),
            (
                "2026-11-22T10:12:09Z agentnet 0.1.0",
                "2026-11-22T10:12:09Z agentnet 0.1.0",
            ),
        ] {
            assert_eq!(redactor.redact(text), expected);
        }
    }

    #[test]
    fn keys_and_tokens_are_hidden_and_words_are_not() {
        let mut redactor = redactor();
        let did = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";
        let tunnel = "pOCSkrZRwni5dyxWn1+puxPZBrRqtoyd+dwrRAn4ogk=";
        let token = "agn1_c2VjcmV0";

        let text = redactor.redact(&format!("{did} {tunnel} {token} {did}"));

        assert_eq!(text, "did:key:key-1 key-2 key-3 did:key:key-1");
        let metric = "agentnet_node_peer_last_inbound_timestamp_seconds 5";
        assert_eq!(redactor.redact(metric), metric);
        assert_eq!(
            redactor.redact("/var/lib/agentnet-registry/operator"),
            "/var/lib/agentnet-registry/operator"
        );
    }
}
