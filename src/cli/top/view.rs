//! What the operator has chosen to look at: the order of links, a filter, how far down; and the keys that change it.

use std::cmp::{Ordering, Reverse};

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Link, Model};
use crate::control::api::LinkState;

/// The choices.
#[derive(Debug, Default)]
pub(super) struct View {
    /// By what links are ordered.
    pub(super) sort: Sort,
    /// Set to see the other end first.
    pub(super) reversed: bool,
    /// Part of a name, state, reason or endpoint; all links while it is empty.
    pub(super) filter: String,
    /// What the keyboard is for.
    pub(super) mode: Mode,
    /// How many links are above the screen.
    pub(super) offset: usize,
    /// How many links fit on the screen, as it was drawn last.
    pub(super) page: usize,
}

/// What the keyboard is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    /// Commands.
    #[default]
    Commands,
    /// The filter's text.
    Filter,
    /// Leaving the help.
    Help,
}

/// By what links are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sort {
    /// As the configuration has them.
    #[default]
    Configured,
    /// From a to z.
    Name,
    /// The worst first.
    State,
    /// The latest change first.
    Age,
    /// The longest first.
    RoundTrip,
    /// The most first.
    Loss,
    /// The most received first.
    In,
    /// The most sent first.
    Out,
}

/// Whether to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    /// With what was changed.
    Continue,
    /// The operator has seen enough.
    Quit,
}

impl Sort {
    const ALL: [Self; 8] =
        [Self::Configured, Self::Name, Self::State, Self::Age, Self::RoundTrip, Self::Loss, Self::In, Self::Out];

    /// For the line of keys.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Configured => "as configured",
            Self::Name => "name",
            Self::State => "state",
            Self::Age => "time in state",
            Self::RoundTrip => "round trip",
            Self::Loss => "loss",
            Self::In => "rate in",
            Self::Out => "rate out",
        }
    }

    fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    fn compare(self, a: &Link<'_>, b: &Link<'_>) -> Ordering {
        let sent = |link: &Link<'_>| link.rate.map_or(-1.0, |rate| rate.sent);
        let received = |link: &Link<'_>| link.rate.map_or(-1.0, |rate| rate.received);
        match self {
            Self::Configured => Ordering::Equal,
            Self::Name => a.peer.name.cmp(&b.peer.name),
            Self::State => urgency(a.peer.state).cmp(&urgency(b.peer.state)),
            Self::Age => a.age.cmp(&b.age),
            Self::RoundTrip => Reverse(a.peer.rtt_microseconds).cmp(&Reverse(b.peer.rtt_microseconds)),
            Self::Loss => b.peer.loss.total_cmp(&a.peer.loss),
            Self::In => received(b).total_cmp(&received(a)),
            Self::Out => sent(b).total_cmp(&sent(a)),
        }
    }
}

impl View {
    /// The links that are looked at, in their order. Those that are equal stay as they are configured.
    pub(super) fn links<'m>(&self, model: &'m Model) -> Vec<Link<'m>> {
        let filter = self.filter.to_lowercase();
        let mut links: Vec<_> = model.links().filter(|link| matches(link, &filter)).collect();
        links.sort_by(|a, b| self.sort.compare(a, b));
        if self.reversed {
            links.reverse();
        }
        links
    }

    /// Has so many of `links` links on the screen from here on. Not past the end.
    pub(super) fn fit(&mut self, links: usize, page: usize) {
        self.page = page;
        self.offset = self.offset.min(links.saturating_sub(page));
    }

    /// Does what a key is for.
    pub(super) fn on_key(&mut self, key: KeyEvent) -> Flow {
        if key.kind == KeyEventKind::Release {
            return Flow::Continue;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match (self.mode, key.code) {
            (_, KeyCode::Char('c')) if control => return Flow::Quit,
            _ if control => {}
            (Mode::Help, KeyCode::Char('q')) => return Flow::Quit,
            (Mode::Help, _) => self.mode = Mode::Commands,
            (Mode::Filter, code) => self.type_filter(code),
            (Mode::Commands, code) => return self.command(code),
        }
        Flow::Continue
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(character) => self.filter.push(character),
            KeyCode::Backspace if self.filter.pop().is_none() => self.mode = Mode::Commands,
            KeyCode::Enter => self.mode = Mode::Commands,
            KeyCode::Esc => {
                self.filter.clear();
                self.mode = Mode::Commands;
            }
            code => self.scroll(code),
        }
    }

    fn command(&mut self, code: KeyCode) -> Flow {
        match code {
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Char('q') | KeyCode::Esc => return Flow::Quit,
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.reversed = false;
            }
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char('/') => self.mode = Mode::Filter,
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            code => self.scroll(code),
        }
        Flow::Continue
    }

    /// Past the end too: [`fit`](Self::fit) sees to that.
    fn scroll(&mut self, code: KeyCode) {
        self.offset = match code {
            KeyCode::Up => self.offset.saturating_sub(1),
            KeyCode::Down => self.offset + 1,
            KeyCode::PageUp => self.offset.saturating_sub(self.page),
            KeyCode::PageDown => self.offset + self.page,
            KeyCode::Home => 0,
            KeyCode::End => usize::MAX / 2,
            _ => self.offset,
        };
    }
}

fn matches(link: &Link<'_>, filter: &str) -> bool {
    let peer = link.peer;
    let endpoint = peer.endpoint.map(|endpoint| endpoint.to_string());
    let texts = [Some(peer.name.to_lowercase()), Some(peer.state.as_str().to_owned()), peer.reason.clone(), endpoint];
    texts.iter().flatten().any(|text| text.contains(filter))
}

/// What wants to be looked at comes first.
fn urgency(state: LinkState) -> u8 {
    match state {
        LinkState::Down => 0,
        LinkState::Degraded => 1,
        LinkState::Draining => 2,
        LinkState::Unknown => 3,
        LinkState::Idle => 4,
        LinkState::Up => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::PeerReport;
    use crate::control::api::tests::status;
    use crate::dataplane::clock;

    fn press(view: &mut View, keys: &str) -> Flow {
        keys.chars().map(|key| view.on_key(KeyCode::Char(key).into())).last().unwrap()
    }

    /// Four links, of which each order is another.
    fn model() -> Model {
        let mut status = status();
        let usual = status.peers[0].clone();
        let link = |name: &str, state, since, rtt, loss| PeerReport {
            name: name.into(),
            state,
            state_since: since,
            rtt_microseconds: rtt,
            loss,
            ..usual.clone()
        };
        let now = status.unix_time as f64;
        status.peers = vec![
            link("delta", LinkState::Up, now - 30.0, Some(7), 0.0),
            link("alpha", LinkState::Down, now - 20.0, None, 1.0),
            link("charlie", LinkState::Up, now - 10.0, Some(9), 0.1),
            link("bravo", LinkState::Degraded, now - 40.0, Some(8), 0.2),
        ];
        Model::new(clock::now(), status)
    }

    fn names(view: &View, model: &Model) -> String {
        let links = view.links(model);
        links.iter().map(|link| &link.peer.name[..1]).collect()
    }

    #[test]
    fn links_are_ordered_as_chosen() {
        let (mut view, model) = (View::default(), model());
        let mut orders = vec![];
        for _ in Sort::ALL {
            orders.push((view.sort.as_str(), names(&view, &model)));
            press(&mut view, "s");
        }
        let expected = [
            ("as configured", "dacb"),
            ("name", "abcd"),
            ("state", "abdc"),
            ("time in state", "cadb"),
            ("round trip", "cbda"),
            ("loss", "abcd"),
            ("rate in", "dacb"),
            ("rate out", "dacb"),
        ];
        assert_eq!(orders, expected.map(|(sort, order)| (sort, order.to_owned())));
        assert_eq!(view.sort, Sort::Configured);
        press(&mut view, "r");
        assert_eq!(names(&view, &model), "bcad");
    }

    #[test]
    fn a_filter_is_typed_and_taken_away() {
        let (mut view, model) = (View::default(), model());
        press(&mut view, "/AlPq");
        view.on_key(KeyCode::Backspace.into());
        assert_eq!((names(&view, &model).as_str(), view.mode), ("a", Mode::Filter));
        view.on_key(KeyCode::Enter.into());
        assert_eq!(press(&mut view, "s"), Flow::Continue);
        assert_eq!((view.filter.as_str(), view.sort), ("AlP", Sort::Name));
        assert_eq!(view.on_key(KeyCode::Esc.into()), Flow::Continue);
        assert_eq!(names(&view, &model), "abcd");
        press(&mut view, "/down");
        assert_eq!(names(&view, &model), "a");
        view.on_key(KeyCode::Esc.into());
        assert_eq!((view.filter.as_str(), view.mode), ("", Mode::Commands));
    }

    #[test]
    fn q_escape_and_control_c_end_it() {
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(press(&mut View::default(), "q"), Flow::Quit);
        assert_eq!(View::default().on_key(KeyCode::Esc.into()), Flow::Quit);
        for before in ["s", "/", "?"] {
            let mut view = View::default();
            press(&mut view, before);
            assert_eq!(view.on_key(control_c), Flow::Quit, "{before}");
        }
        let mut view = View::default();
        assert_eq!(press(&mut view, "?x"), Flow::Continue);
        assert_eq!(view.mode, Mode::Commands);
    }

    #[test]
    fn scrolling_stays_within_the_links() {
        let mut view = View::default();
        let mut go = |code: KeyCode| {
            view.on_key(code.into());
            view.fit(25, 10);
            view.offset
        };
        assert_eq!([KeyCode::Up, KeyCode::Down, KeyCode::PageDown].map(&mut go), [0, 1, 11]);
        assert_eq!([KeyCode::PageDown, KeyCode::Down, KeyCode::PageUp].map(&mut go), [15, 15, 5]);
        assert_eq!([KeyCode::End, KeyCode::Home].map(&mut go), [15, 0]);
    }
}
