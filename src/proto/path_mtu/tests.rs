use super::super::constants::{PATH_CONFIRM_INTERVAL, PATH_PROBES_CONFIRMING};
use super::super::tests::start;
use super::*;

const PATIENCE: Duration = Duration::from_millis(200);
const LINK: Link = Link { patience: PATIENCE, confirm_interval: PATH_CONFIRM_INTERVAL };
/// Of an interface's MTU of 1420 bytes.
const WANTED: u16 = 1420 + OVERHEAD;
const REMOTE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

/// What is known of a path, and a path that answers at once.
struct Walk {
    now: Instant,
    path: PathMtu,
    /// Length of the longest datagrams that pass; 0 for none at all.
    carries: u16,
    token: u64,
}

impl Walk {
    fn on_path_of(carries: u16) -> Self {
        Self { now: start(), path: PathMtu::new(Some(MtuRange::fixed(1420))), carries, token: 0 }
    }

    fn tend(&mut self) -> Option<Probe> {
        self.path.tend(self.now, REMOTE, LINK)
    }

    fn token(&mut self) -> u64 {
        self.token += 1;
        self.token
    }

    /// Does what is due for `duration`. Returns the probes sent meanwhile, but for the small ones: when, since the walk began;
    /// how long; whether with a small one.
    fn walk(&mut self, duration: Duration) -> Vec<(Duration, u16, bool)> {
        let (begin, end) = (self.now, self.now + duration);
        let mut sent = Vec::new();
        loop {
            while let Some(Probe { length, is_paired }) = self.tend() {
                let token = self.token();
                let pair = is_paired.then(|| self.token());
                self.path.on_probe_sent(self.now, token, pair);
                sent.push((self.now - begin, length, is_paired));
                assert!(sent.len() < 1_000, "it would never end");
                if let Some(pair) = pair.filter(|_| self.carries > 0) {
                    assert!(self.path.on_pong(self.now, pair));
                }
                if length <= self.carries {
                    assert!(self.path.on_pong(self.now, token));
                }
            }
            match self.path.next_at(self.now, LINK) {
                Some(next) if next <= end => {
                    assert!(next > self.now, "nor here");
                    self.now = next;
                }
                _ => break,
            }
        }
        self.now = end;
        sent
    }

    fn limit(&self) -> PathLimit {
        self.path.limit(REMOTE)
    }

    fn assert_found(&self) {
        let PathLimit { datagram, .. } = self.limit();
        assert!(datagram <= self.carries && self.carries - datagram <= PATH_SEARCH_STEP, "{datagram}");
        assert!(self.limit().is_narrow() && self.limit().is_final() && self.path.is_narrow());
    }
}

fn lengths(sent: &[(Duration, u16, bool)]) -> Vec<u16> {
    let mut lengths: Vec<u16> = sent.iter().map(|(_, length, _)| *length).collect();
    lengths.dedup();
    lengths
}

#[test]
fn all_that_is_wanted_is_tried_first_and_then_only_confirmed() {
    let mut walk = Walk::on_path_of(1500);
    assert_eq!(walk.limit(), PathLimit { datagram: PATH_BASE_LEN, width: Width::Unknown });
    assert!(!walk.limit().is_final() && !walk.limit().is_narrow() && walk.path.seeks());
    let sent = walk.walk(PATH_CONFIRM_INTERVAL * 3);
    assert_eq!(sent, [0, 1, 2, 3].map(|number| (PATH_CONFIRM_INTERVAL * number, WANTED, false)));
    assert_eq!(walk.limit(), PathLimit { datagram: WANTED, width: Width::Full });
    assert_eq!(walk.limit().packet(), 1420);
    assert!(walk.limit().is_final() && !walk.limit().is_narrow() && !walk.path.is_narrow() && !walk.path.seeks());
}

#[test]
fn a_narrow_path_is_found_by_halves() {
    let mut walk = Walk::on_path_of(1272);
    let sent = walk.walk(Duration::from_secs(5));
    let retry = PATIENCE + PATH_RETRY_INTERVAL;
    let first = [Duration::ZERO, PATIENCE, retry, retry + PATH_RETRY_INTERVAL];
    assert_eq!(sent[..4], [0, 1, 2, 3].map(|index| (first[index], WANTED, index == 3)));
    assert_eq!(sent[4].0, first[3] + PATIENCE);
    assert_eq!(lengths(&sent), [WANTED, 1326, 1263, 1294, 1278, 1270], "the last of which is then confirmed");
    walk.assert_found();
}

#[test]
fn what_is_found_is_as_close_as_a_step_wherever_the_path_ends() {
    for carries in PATH_BASE_LEN..WANTED {
        let mut walk = Walk::on_path_of(carries);
        walk.walk(Duration::from_secs(8));
        walk.assert_found();
    }
}

#[test]
fn a_search_that_is_under_way_knows_what_is_too_long() {
    let mut walk = Walk::on_path_of(1272);
    walk.walk(Duration::from_millis(700));
    assert!(walk.path.is_narrow(), "what is wanted does not pass");
    assert!(!walk.limit().is_final(), "but more may");
}

#[test]
fn a_path_that_shrinks_is_noticed_while_it_is_confirmed() {
    let mut walk = Walk::on_path_of(1500);
    walk.walk(Duration::from_secs(1));
    walk.carries = 1300;
    let sent = walk.walk(Duration::from_secs(4));
    let confirming = sent.iter().take_while(|(_, length, _)| *length == WANTED).count();
    assert_eq!(confirming, PATH_PROBES_CONFIRMING as usize);
    assert!(sent[confirming - 1].2 && !sent[confirming - 2].2, "with the last a small one");
    assert_eq!(
        sent[confirming].1,
        PATH_BASE_LEN + (WANTED - PATH_BASE_LEN) / 2,
        "begins between the base and what was lost"
    );
    walk.assert_found();
}

/// A path that was narrow and carries `grown` since it was last tried. Returns what had been found, and the lengths tried since.
fn on_grown_path(grown: u16) -> (Walk, u16, Vec<u16>) {
    let mut walk = Walk::on_path_of(1272);
    walk.walk(Duration::from_secs(5));
    let found = walk.limit().datagram;
    walk.carries = grown;
    let sent = walk.walk(PATH_RAISE_INTERVAL + Duration::from_secs(3));
    let (at, first, _) = *sent.iter().find(|(_, length, _)| *length > found).unwrap();
    assert_eq!(first, WANTED);
    assert!(at <= PATH_RAISE_INTERVAL, "{at:?}");
    (walk, found, lengths(&sent))
}

#[test]
fn a_path_that_grows_is_noticed_when_more_is_tried() {
    let (walk, ..) = on_grown_path(1500);
    assert_eq!(walk.limit(), PathLimit { datagram: WANTED, width: Width::Full });
}

#[test]
fn a_path_that_grows_a_little_is_noticed_by_a_step() {
    let (walk, found, tried) = on_grown_path(1400);
    assert!(tried.contains(&(found + PATH_SEARCH_STEP)), "{tried:?}");
    walk.assert_found();
}

#[test]
fn a_path_that_stays_narrow_is_tried_again_and_stays_in_use() {
    let mut walk = Walk::on_path_of(1272);
    walk.walk(Duration::from_secs(5));
    let found = walk.limit();
    for _ in 0..2 {
        let sent = walk.walk(PATH_RAISE_INTERVAL + Duration::from_secs(2));
        let longer: Vec<u16> = lengths(&sent).into_iter().filter(|length| *length > found.datagram).collect();
        assert_eq!(longer, [WANTED, found.datagram + PATH_SEARCH_STEP]);
        assert_eq!(walk.limit(), found);
    }
}

#[test]
fn so_close_to_all_that_is_wanted_no_step_is_tried() {
    let mut walk = Walk::on_path_of(WANTED - 1);
    walk.walk(Duration::from_secs(8));
    let found = walk.limit().datagram;
    let sent = walk.walk(PATH_RAISE_INTERVAL + Duration::from_secs(2));
    let longer: Vec<u16> = sent.iter().map(|(_, length, _)| *length).filter(|length| *length > found).collect();
    assert_eq!(longer, [WANTED; PATH_PROBES_SEARCHING as usize]);
}

#[test]
fn a_path_below_the_base_is_left_at_the_floor_and_tried_now_and_then() {
    let mut walk = Walk::on_path_of(1100);
    walk.walk(Duration::from_secs(6));
    assert_eq!(walk.limit(), PathLimit { datagram: PATH_FLOOR_LEN, width: Width::Narrow });
    assert!(!walk.path.seeks());
    let sent = walk.walk(3 * PATH_IDLE_INTERVAL);
    assert_eq!(lengths(&sent), [PATH_BASE_LEN]);
    let series = sent.iter().filter(|(_, _, is_paired)| *is_paired).count();
    assert!((2..=3).contains(&series), "{sent:?}");
}

#[test]
fn a_path_that_comes_to_carry_the_base_is_searched_anew() {
    let on_recovered_path = |carries, search| {
        let mut walk = Walk::on_path_of(1100);
        walk.walk(Duration::from_secs(6));
        walk.carries = carries;
        walk.walk(PATH_IDLE_INTERVAL + search);
        walk
    };
    on_recovered_path(1272, Duration::from_secs(5)).assert_found();
    let wide = on_recovered_path(1500, Duration::from_secs(1));
    assert_eq!(wide.limit(), PathLimit { datagram: WANTED, width: Width::Full });
}

#[test]
fn a_silent_link_loses_nothing_and_is_asked_ever_more_rarely() {
    let mut walk = Walk::on_path_of(0);
    let sent = walk.walk(Duration::from_secs(20));
    assert_eq!(lengths(&sent), [WANTED]);
    assert_eq!(walk.limit(), PathLimit { datagram: PATH_BASE_LEN, width: Width::Unknown });
    let at_its_end = PATH_PROBES_SEARCHING as usize - 1;
    assert!(sent.iter().enumerate().all(|(index, (_, _, is_paired))| *is_paired == (index >= at_its_end)));
    let gaps: Vec<Duration> = sent.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    let in_vain = at_its_end + PAIRS_IN_VAIN as usize;
    assert!(gaps[at_its_end..in_vain].iter().all(|gap| *gap == PATIENCE), "{gaps:?}");
    assert!(gaps[in_vain..].iter().all(|gap| *gap == LIVENESS_DEAD_INTERVAL) && gaps.len() > in_vain, "{gaps:?}");
    assert!(!walk.path.seeks(), "nobody answers");
}

#[test]
fn another_place_is_another_path() {
    let mut walk = Walk::on_path_of(1272);
    walk.walk(Duration::from_secs(5));
    let elsewhere = IpAddr::from([192, 0, 2, 2]);
    assert_eq!(walk.path.limit(elsewhere), PathLimit { datagram: PATH_BASE_LEN, width: Width::Unknown });
    let probe = walk.path.tend(walk.now, elsewhere, LINK);
    assert_eq!(probe, Some(Probe { length: WANTED, is_paired: false }));
    assert_eq!(walk.path.limit(elsewhere), PathLimit { datagram: PATH_BASE_LEN, width: Width::Unknown });
    assert!(walk.path.in_flight.is_empty(), "answers from where it was count for nothing");
    walk.path.on_probe_sent(walk.now, 1_000, None);
    assert!(walk.path.on_pong(walk.now, 1_000));
    assert_eq!(walk.path.limit(elsewhere), PathLimit { datagram: WANTED, width: Width::Full });
    assert_eq!(walk.limit(), PathLimit { datagram: PATH_BASE_LEN, width: Width::Unknown }, "nor there any more");
}

#[test]
fn a_late_answer_to_something_longer_ends_the_search_for_less() {
    let mut walk = Walk::on_path_of(1272);
    assert_eq!(walk.tend(), Some(Probe { length: WANTED, is_paired: false }));
    walk.path.on_probe_sent(walk.now, 1_000, None);
    walk.walk(Duration::from_millis(700));
    assert!(walk.path.series.is_some_and(|series| series.length < WANTED));
    assert!(walk.path.on_pong(walk.now, 1_000));
    assert!(walk.path.series.is_none());
    assert_eq!(walk.limit(), PathLimit { datagram: WANTED, width: Width::Full });
    assert!(!walk.path.on_pong(walk.now, 1_000), "each answers once");
}

#[test]
fn a_late_answer_to_what_was_given_up_begins_the_search_anew() {
    let mut walk = Walk::on_path_of(1272);
    walk.walk(Duration::from_secs(1));
    assert!(walk.path.series.is_some_and(|series| series.length == 1294), "{:?}", walk.path.series);
    walk.path.in_flight.push_back(Sent { token: 1_000, length: 1326, is_pair: false });
    walk.carries = 1500;
    assert!(walk.path.on_pong(walk.now, 1_000));
    walk.walk(Duration::from_secs(1));
    assert_eq!(walk.limit(), PathLimit { datagram: WANTED, width: Width::Full });
}

#[test]
fn a_late_answer_to_something_shorter_changes_nothing() {
    let mut walk = Walk::on_path_of(1500);
    walk.path.in_flight.push_back(Sent { token: 1_000, length: 1263, is_pair: false });
    walk.walk(PATH_CONFIRM_INTERVAL / 2);
    let before = walk.path.confirmed_at;
    walk.now += Duration::from_millis(1);
    assert!(walk.path.on_pong(walk.now, 1_000));
    assert_eq!(walk.limit().datagram, WANTED);
    assert_eq!(walk.path.confirmed_at, before);
}

#[test]
fn a_late_answer_beside_another_length_says_nothing_of_this_one() {
    let mut walk = Walk::on_path_of(0);
    walk.path.in_flight.push_back(Sent { token: 1_000, length: 1263, is_pair: true });
    walk.walk(Duration::from_millis(100));
    assert!(walk.path.on_pong(walk.now, 1_000));
    assert!(walk.path.series.is_some_and(|series| series.length == WANTED && !series.is_pair_answered));
}

#[test]
fn only_the_newest_probes_may_still_be_answered() {
    let mut walk = Walk::on_path_of(0);
    walk.tend();
    for token in 0..MAX_IN_FLIGHT as u64 {
        walk.path.on_probe_sent(walk.now, token, None);
    }
    assert_eq!(walk.path.in_flight.len(), MAX_IN_FLIGHT);
    walk.path.on_probe_sent(walk.now, 100, Some(101));
    assert_eq!(walk.path.in_flight.len(), MAX_IN_FLIGHT);
    assert!(!walk.path.on_pong(walk.now, 0) && !walk.path.on_pong(walk.now, 1));
    assert!(walk.path.on_pong(walk.now, 2));
}

#[test]
fn nothing_is_tried_that_there_is_no_use_for() {
    let mut none = PathMtu::new(None);
    assert_eq!((none.tend(start(), REMOTE, LINK), none.next_at(start(), LINK)), (None, None));
    assert_eq!(none.limit(REMOTE), PathLimit::NONE);
    assert!(!none.is_narrow() && !none.seeks());
    let mut small = PathMtu::new(Some(MtuRange::fixed(1000)));
    assert_eq!(small.tend(start(), REMOTE, LINK), Some(Probe { length: 1000 + OVERHEAD, is_paired: false }));
    assert_eq!(small.limit(REMOTE).datagram, 1000 + OVERHEAD, "which is below the base");
    let mut large = PathMtu::new(Some(MtuRange::fixed(u16::MAX)));
    assert_eq!(large.tend(start(), REMOTE, LINK), Some(Probe { length: MAX_DATAGRAM_LEN, is_paired: false }));
}
