//! What a function's container is to do next: the states, and nothing that does anything.
//!
//! ```text
//! absent --request--> starting --created--> warm --idle--> freezing --frozen--> frozen
//!    ^                   |                   ^ ^              |                   |
//!    |                failed                 | '--- thawed ---'------ request ----'
//!    |                   v                   |
//!    '---- idle --- warm, frozen     failed (until its back-off is over)
//! ```
//!
//! Time comes in as an argument, so that tests have their own.

use std::time::{Duration, Instant};

use crate::config::{Function, Keep};

/// The first back-off; each failure in a row doubles it.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Where a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no container.
    Absent,
    /// One is being created.
    Starting,
    /// It runs.
    Warm,
    /// It is being frozen.
    Freezing,
    /// It is frozen.
    Frozen,
    /// It could not be created, or has ended without an answer; until the back-off is over nobody
    /// tries again.
    Failed,
    /// The function is going: it takes no more requests.
    Retired,
}

impl State {
    /// Its name for people and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Starting => "starting",
            Self::Warm => "warm",
            Self::Freezing => "freezing",
            Self::Frozen => "frozen",
            Self::Failed => "failed",
            Self::Retired => "retired",
        }
    }

    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Absent,
        Self::Starting,
        Self::Warm,
        Self::Freezing,
        Self::Frozen,
        Self::Failed,
        Self::Retired,
    ];
}

/// What a request is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Go on to the container.
    Go,
    /// Thaw the container, then go on.
    Thaw,
    /// Have a container created, and wait.
    Create,
    /// Wait until the state has changed, and ask again.
    Wait,
    /// There is none: it has failed, and is not tried for as long.
    Refused(Duration),
    /// The function is going.
    Retired,
}

/// What time has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Freeze the container.
    Freeze,
    /// Remove the container.
    Stop,
    /// Create one: it is to be there before anybody asks.
    Create,
}

/// How a function becomes idle.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    freeze_after: Option<Duration>,
    stop_after: Option<Duration>,
    keep: Keep,
}

impl Policy {
    /// That of a function.
    pub fn of(function: &Function) -> Self {
        let Function { freeze_after, stop_after, keep, .. } = *function;
        Self { freeze_after, stop_after, keep }
    }
}

/// One function's life.
#[derive(Debug)]
pub struct Life {
    policy: Policy,
    state: State,
    /// Requests that have been admitted or wait, and are not over.
    requests: usize,
    /// Since when there is none.
    idle_since: Instant,
    /// Failures in a row, without an answer in between.
    failures: u32,
    /// Until when nobody tries again.
    retry_at: Instant,
}

impl Life {
    /// Without a container.
    pub fn new(policy: Policy, now: Instant) -> Self {
        Self {
            policy,
            state: State::Absent,
            requests: 0,
            idle_since: now,
            failures: 0,
            retry_at: now,
        }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// How many requests there are.
    pub fn requests(&self) -> usize {
        self.requests
    }

    /// A request has come. To be followed by [`Self::admit`], and in any case by [`Self::leave`].
    pub fn enter(&mut self) {
        self.requests += 1;
    }

    /// The request is over.
    pub fn leave(&mut self, now: Instant) {
        self.requests = self.requests.saturating_sub(1);
        if self.requests == 0 {
            self.idle_since = now;
        }
    }

    /// What a request is to do now. [`Admission::Create`] is said to one of them.
    pub fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Warm => Admission::Go,
            State::Frozen => {
                self.state = State::Warm;
                Admission::Thaw
            }
            State::Starting | State::Freezing => Admission::Wait,
            State::Failed if now < self.retry_at => {
                Admission::Refused(self.retry_at.duration_since(now))
            }
            State::Absent | State::Failed => {
                self.state = State::Starting;
                Admission::Create
            }
            State::Retired => Admission::Retired,
        }
    }

    /// The container is there. False if it is not wanted any more.
    pub fn created(&mut self, now: Instant) -> bool {
        if self.state != State::Starting {
            return false;
        }
        self.state = State::Warm;
        if self.requests == 0 {
            self.idle_since = now;
        }
        true
    }

    /// The container could not be created.
    pub fn creation_failed(&mut self, now: Instant) {
        if self.state == State::Starting {
            self.fail(now);
        }
    }

    /// A request has been answered by the container: what comes is not a failure in a row.
    pub fn answered(&mut self) {
        self.failures = 0;
    }

    /// The container has ended without being asked to. `useful`: it has answered a request.
    pub fn ended(&mut self, useful: bool, now: Instant) {
        match self.state {
            State::Retired => {}
            _ if useful => self.state = State::Absent,
            _ => self.fail(now),
        }
    }

    fn fail(&mut self, now: Instant) {
        let doubled = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        self.retry_at = now + doubled.min(LONGEST_BACKOFF);
        self.state = State::Failed;
    }

    /// [`Due::Freeze`] has been carried out, or could not be. True if the container is to be thawed
    /// again: somebody waits.
    pub fn frozen(&mut self, done: bool) -> bool {
        if self.state != State::Freezing {
            return false;
        }
        let thaw = done && self.requests > 0;
        self.state = if done && !thaw { State::Frozen } else { State::Warm };
        thaw
    }

    /// It takes no more requests from here on.
    pub fn retire(&mut self) {
        self.state = State::Retired;
    }

    /// When [`Self::due`] is to be asked again, as things are.
    pub fn deadline(&self) -> Option<Instant> {
        if self.is_to_be_there() {
            return Some(self.retry_at);
        }
        if self.requests > 0 {
            return None;
        }
        match self.state {
            State::Warm => [self.freeze_after(), self.stop_after()].into_iter().flatten().min(),
            State::Frozen => self.stop_after(),
            _ => None,
        }
        .map(|after| self.idle_since + after)
    }

    /// What is to be done by now; the state has changed to that already.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        if self.is_to_be_there() {
            self.state = State::Starting;
            return Some(Due::Create);
        }
        let idle = now.duration_since(self.idle_since);
        if self.stop_after().is_some_and(|after| idle >= after) {
            self.state = State::Absent;
            return Some(Due::Stop);
        }
        self.state = State::Freezing;
        Some(Due::Freeze)
    }

    fn is_to_be_there(&self) -> bool {
        self.policy.keep != Keep::Nothing && matches!(self.state, State::Absent | State::Failed)
    }

    fn freeze_after(&self) -> Option<Duration> {
        self.policy.freeze_after.filter(|_| self.policy.keep != Keep::Warm)
    }

    fn stop_after(&self) -> Option<Duration> {
        self.policy.stop_after.filter(|_| self.policy.keep == Keep::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn life(keep: Keep) -> (Life, Instant) {
        let now = Instant::now();
        let policy = Policy { freeze_after: Some(5 * SECOND), stop_after: Some(60 * SECOND), keep };
        (Life::new(policy, now), now)
    }

    fn warm(keep: Keep) -> (Life, Instant) {
        let (mut life, now) = life(keep);
        life.enter();
        assert_eq!(life.admit(now), Admission::Create);
        assert!(life.created(now));
        life.leave(now);
        (life, now)
    }

    #[test]
    fn many_first_requests_create_one_container() {
        let (mut life, now) = life(Keep::Nothing);
        for _ in 0..100 {
            life.enter();
        }
        assert_eq!(life.admit(now), Admission::Create);
        for _ in 1..100 {
            assert_eq!(life.admit(now), Admission::Wait);
        }
        assert!(life.created(now));
        assert_eq!(life.admit(now), Admission::Go);
        assert_eq!(life.deadline(), None, "it is busy");
    }

    #[test]
    fn idle_it_is_frozen_and_then_removed() {
        let (mut life, start) = warm(Keep::Nothing);
        assert_eq!(life.deadline(), Some(start + 5 * SECOND));
        assert_eq!(life.due(start + 4 * SECOND), None);
        assert_eq!(life.due(start + 5 * SECOND), Some(Due::Freeze));
        assert_eq!(life.deadline(), None);
        assert!(!life.frozen(true));
        assert_eq!(life.state(), State::Frozen);
        assert_eq!(life.deadline(), Some(start + 60 * SECOND));
        assert_eq!(life.due(start + 60 * SECOND), Some(Due::Stop));
        assert_eq!((life.state(), life.deadline()), (State::Absent, None));
        life.enter();
        assert_eq!(life.admit(start + 61 * SECOND), Admission::Create);
    }

    #[test]
    fn a_request_thaws() {
        let (mut life, start) = warm(Keep::Nothing);
        life.due(start + 5 * SECOND);
        life.frozen(true);
        life.enter();
        assert_eq!(life.admit(start + 6 * SECOND), Admission::Thaw);
        assert_eq!(life.admit(start + 6 * SECOND), Admission::Go);
        life.leave(start + 7 * SECOND);
        assert_eq!(life.deadline(), Some(start + 12 * SECOND));
    }

    #[test]
    fn a_request_that_comes_while_it_is_frozen_waits_and_has_it_thawed() {
        let (mut life, start) = warm(Keep::Nothing);
        life.due(start + 5 * SECOND);
        life.enter();
        assert_eq!(life.admit(start + 5 * SECOND), Admission::Wait);
        assert!(life.frozen(true));
        assert_eq!(life.admit(start + 5 * SECOND), Admission::Go);
    }

    #[test]
    fn what_cannot_be_frozen_stays_warm() {
        let (mut life, start) = warm(Keep::Nothing);
        life.due(start + 5 * SECOND);
        assert!(!life.frozen(false));
        assert_eq!(life.state(), State::Warm);
    }

    #[test]
    fn what_fails_is_tried_again_later_and_later() {
        let (mut life, mut now) = life(Keep::Nothing);
        life.enter();
        let mut waits = Vec::new();
        for _ in 0..12 {
            assert_eq!(life.admit(now), Admission::Create);
            life.creation_failed(now);
            let Admission::Refused(wait) = life.admit(now) else { panic!("{life:?}") };
            waits.push(wait.as_millis());
            now += wait;
        }
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], 30_000);
        assert_eq!(life.admit(now), Admission::Create);
        assert!(life.created(now));
        life.ended(false, now);
        assert!(matches!(life.admit(now), Admission::Refused(_)), "it has answered nothing");
    }

    #[test]
    fn what_ends_after_an_answer_is_there_for_the_next_request() {
        let (mut life, now) = warm(Keep::Nothing);
        life.answered();
        life.ended(true, now);
        assert_eq!((life.state(), life.admit(now)), (State::Absent, Admission::Create));
    }

    #[test]
    fn what_is_kept_is_there_before_anybody_asks() {
        for keep in [Keep::Warm, Keep::Frozen] {
            let (mut life, now) = life(keep);
            assert_eq!(life.due(now), Some(Due::Create));
            assert_eq!(life.due(now), None);
            life.creation_failed(now);
            assert_eq!(life.due(now), None);
            assert_eq!(life.due(now + SECOND), Some(Due::Create));
            assert!(life.created(now + SECOND));
            let later = now + 100 * SECOND;
            let due = life.due(later);
            assert_eq!(due, (keep == Keep::Frozen).then_some(Due::Freeze));
            life.frozen(true);
            assert_eq!(life.due(later + 1000 * SECOND), None);
        }
    }

    #[test]
    fn a_retired_one_takes_nothing_and_does_nothing() {
        let (mut life, now) = warm(Keep::Warm);
        life.retire();
        assert_eq!((life.admit(now), life.deadline()), (Admission::Retired, None));
        life.ended(false, now);
        assert_eq!(life.state(), State::Retired);
        let (mut life, now) = super::tests::life(Keep::Nothing);
        life.admit(now);
        life.retire();
        assert!(!life.created(now), "nobody wants it any more");
    }
}
