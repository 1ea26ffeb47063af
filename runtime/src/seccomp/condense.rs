//! The same decisions in a program a quarter as long.
//!
//! The kernel's time for seccomp(2) goes into translating the program and into running it once
//! for each call number, to know which are always allowed; both shrink with it. For most numbers
//! libseccomp's program comes to its decision from the architecture and the number alone, the
//! same one for whole ranges of numbers. Here each architecture gets a binary search among those
//! ranges; the instructions that look at arguments are kept as they are and jumped to.
//!
//! Nothing is assumed about how libseccomp writes programs. The given one is run, up to its first
//! look at an argument, for one number of each range between the constants that it compares
//! with, so for all numbers there are; whatever it does besides loading and comparing makes it
//! stay as it is ([`condense`] returns None). The result is run again and compared.

use std::collections::{BTreeMap, BTreeSet};

use libc::sock_filter;
use libc::{BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET};
use libc::{BPF_W, SECCOMP_RET_KILL_PROCESS};

use super::bpf::{ARCH, NR, X32_BIT, instruction, jump};

const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
const JUMP: u32 = BPF_JMP | BPF_JA;
const RETURN: u32 = BPF_RET | BPF_K;
const EQUAL: u32 = BPF_JMP | BPF_JEQ | BPF_K;
const ABOVE: u32 = BPF_JMP | BPF_JGT | BPF_K;
const AT_LEAST: u32 = BPF_JMP | BPF_JGE | BPF_K;
const ANY_BIT: u32 = BPF_JMP | BPF_JSET | BPF_K;

/// How far away a decision is made again rather than jumped to. A conditional jump reaches 255.
const NEAR: usize = 200;

/// What a program comes to, knowing the architecture and the number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Decision {
    /// This value.
    Return(u32),
    /// It depends on an argument, which the instruction at this index is the first to load.
    /// Nothing that was done before has any influence from there on.
    Arguments(usize),
}

/// Numbers from this one up to the next range's.
#[derive(Clone, Copy, Debug)]
struct Range {
    first: u32,
    decision: Decision,
}

/// A shorter program that returns the same for every call, if there is one.
pub(super) fn condense(program: &[sock_filter]) -> Option<Vec<sock_filter>> {
    let starts = starts(program);
    let other = unused(program);
    let mut architectures = Vec::new();
    let Decision::Return(default) = run(program, other, 0, &mut architectures)? else {
        return None;
    };
    let mut table = Vec::new();
    for arch in &architectures {
        table.push((*arch, ranges(program, *arch, &starts, &architectures)?));
    }
    // One architecture that the program does not know stands for all of those.
    if ranges(program, other, &starts, &architectures)?.len() != 1 {
        return None;
    }
    let (condensed, moved) = Assembler::assemble(program, &table, default);
    if !kept_whole(program, &condensed, &moved) {
        return None;
    }
    let same = |arch: u32, first: u32| {
        let expected = match run(program, arch, first, &mut Vec::new())? {
            Decision::Arguments(at) => Decision::Arguments(*moved.get(&at)?),
            decision => decision,
        };
        (run(&condensed, arch, first, &mut Vec::new())? == expected).then_some(())
    };
    for arch in architectures.into_iter().chain([other]) {
        for first in &starts {
            same(arch, *first)?;
        }
    }
    (condensed.len() < program.len()).then_some(condensed)
}

/// The first numbers of ranges within which no comparison in `program` tells two numbers apart.
fn starts(program: &[sock_filter]) -> BTreeSet<u32> {
    let mut starts = BTreeSet::from([0, X32_BIT, X32_BIT << 1, X32_BIT * 3]);
    for instruction in program {
        match u32::from(instruction.code) {
            EQUAL | ABOVE | AT_LEAST => {
                starts.insert(instruction.k);
                starts.extend(instruction.k.checked_add(1));
            }
            _ => {}
        }
    }
    starts
}

/// An architecture with which no comparison finds equality.
fn unused(program: &[sock_filter]) -> u32 {
    let used: BTreeSet<u32> = program.iter().map(|instruction| instruction.k).collect();
    (1..).find(|arch| !used.contains(arch)).unwrap_or_default()
}

/// The decisions of `program` for `arch`, neighbours that are equal joined.
fn ranges(
    program: &[sock_filter],
    arch: u32,
    starts: &BTreeSet<u32>,
    architectures: &[u32],
) -> Option<Vec<Range>> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut compared = Vec::new();
    for first in starts {
        let decision = run(program, arch, *first, &mut compared)?;
        if ranges.last().is_none_or(|last| last.decision != decision) {
            ranges.push(Range { first: *first, decision });
        }
    }
    compared.iter().all(|arch| architectures.contains(arch)).then_some(ranges)
}

/// Runs `program` up to a decision. The architectures that it compares with are added to
/// `compared`. None if it does what is not foreseen here.
fn run(program: &[sock_filter], arch: u32, nr: u32, compared: &mut Vec<u32>) -> Option<Decision> {
    let mut offset = None;
    let mut at = 0;
    loop {
        let sock_filter { code, jt, jf, k } = *program.get(at)?;
        let value = if offset == Some(ARCH) { arch } else { nr };
        let taken = match u32::from(code) {
            LOAD if k == ARCH || k == NR => {
                offset = Some(k);
                at += 1;
                continue;
            }
            LOAD => return Some(Decision::Arguments(at)),
            RETURN => return Some(Decision::Return(k)),
            JUMP => {
                at += 1 + k as usize;
                continue;
            }
            EQUAL if offset == Some(ARCH) => {
                if !compared.contains(&k) {
                    compared.push(k);
                }
                value == k
            }
            EQUAL if offset == Some(NR) => value == k,
            ABOVE if offset == Some(NR) => value > k,
            AT_LEAST if offset == Some(NR) => value >= k,
            // Of the masks, the starts foresee this one.
            ANY_BIT if offset == Some(NR) && k == X32_BIT => value & k != 0,
            _ => return None,
        };
        at += 1 + usize::from(if taken { jt } else { jf });
    }
}

/// The indices of all instructions that can be reached from the decisions that look at arguments.
fn kept(program: &[sock_filter], table: &[(u32, Vec<Range>)]) -> BTreeSet<usize> {
    let mut kept = BTreeSet::new();
    let mut open: Vec<usize> = Vec::new();
    for range in table.iter().flat_map(|(_, ranges)| ranges) {
        if let Decision::Arguments(at) = range.decision {
            open.push(at);
        }
    }
    while let Some(at) = open.pop() {
        if at < program.len() && kept.insert(at) {
            open.extend(successors(program[at], at));
        }
    }
    kept
}

/// Where the instruction at `at` can go on.
fn successors(instruction: sock_filter, at: usize) -> Vec<usize> {
    let sock_filter { code, jt, jf, k } = instruction;
    match u32::from(code) {
        JUMP => vec![at + 1 + k as usize],
        code if code & 7 == BPF_JMP => vec![at + 1 + usize::from(jt), at + 1 + usize::from(jf)],
        code if code & 7 == BPF_RET => Vec::new(),
        _ => vec![at + 1],
    }
}

/// Whether the instructions kept do at their new indices what they did at the old.
fn kept_whole(
    program: &[sock_filter],
    condensed: &[sock_filter],
    moved: &BTreeMap<usize, usize>,
) -> bool {
    moved.iter().all(|(old, new)| {
        let (before, after) = (program[*old], condensed[*new]);
        let places: Option<Vec<usize>> =
            successors(before, *old).iter().map(|at| moved.get(at).copied()).collect();
        before.code == after.code
            && (before.k == after.k || u32::from(before.code) == JUMP)
            && places == Some(successors(after, *new))
    })
}

/// Writes a program from its end, for all jumps go forward: what is jumped to is there already.
struct Assembler {
    /// The instructions, the last one first. A place is an index in this.
    reversed: Vec<sock_filter>,
    /// Where the program's instructions that look at arguments are.
    arguments: BTreeMap<usize, usize>,
    /// Where each decision was made last.
    made: BTreeMap<Decision, usize>,
}

impl Assembler {
    /// The program that decides by `table`, and returns `default` for other architectures, with
    /// the new index of each instruction of `program` that it keeps.
    fn assemble(
        program: &[sock_filter],
        table: &[(u32, Vec<Range>)],
        default: u32,
    ) -> (Vec<sock_filter>, BTreeMap<usize, usize>) {
        let mut this =
            Self { reversed: Vec::new(), arguments: BTreeMap::new(), made: BTreeMap::new() };
        for at in kept(program, table).into_iter().rev() {
            this.copy(program[at], at);
        }
        let mut sections = Vec::new();
        for (arch, ranges) in table.iter().rev() {
            this.search(ranges);
            sections.push((*arch, this.push(instruction(LOAD, NR))));
        }
        let mut next = this.push(instruction(RETURN, default));
        for (arch, section) in sections {
            let section = this.reachable(section, 0);
            let (jt, jf) = (this.distance(section) as u8, this.distance(next) as u8);
            next = this.push(jump(BPF_JEQ, arch, jt, jf));
        }
        this.push(instruction(LOAD, ARCH));
        let last = this.reversed.len() - 1;
        let moved = this.arguments.into_iter().map(|(at, place)| (at, last - place)).collect();
        this.reversed.reverse();
        (this.reversed, moved)
    }

    fn push(&mut self, instruction: sock_filter) -> usize {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }

    /// How many instructions a jump written now would skip to arrive at `place`.
    fn distance(&self, place: usize) -> usize {
        self.reversed.len() - place - 1
    }

    /// Keeps the program's instruction `at`. All that it can jump to is kept already, in the same
    /// order, so that no jump becomes longer.
    fn copy(&mut self, instruction: sock_filter, at: usize) {
        let to = |skip: usize| {
            let place = self.arguments.get(&(at + 1 + skip));
            place.map_or(0, |place| self.distance(*place))
        };
        let sock_filter { code, jt, jf, k } = instruction;
        let moved = match u32::from(code) {
            code if code == JUMP => self::instruction(code, to(k as usize) as u32),
            code if code & 7 == BPF_JMP => {
                sock_filter { jt: to(jt.into()) as u8, jf: to(jf.into()) as u8, ..instruction }
            }
            _ => instruction,
        };
        let place = self.push(moved);
        self.arguments.insert(at, place);
    }

    /// A search among `ranges` for the number in the accumulator, at the returned place.
    fn search(&mut self, ranges: &[Range]) -> usize {
        match ranges {
            // No architecture is without ranges, but a denied call is the safe answer.
            [] => self.push(instruction(RETURN, SECCOMP_RET_KILL_PROCESS)),
            [range] => self.decide(range.decision),
            _ => {
                let (below, above) = ranges.split_at(ranges.len() / 2);
                let yes = self.search(above);
                let no = self.search(below);
                // The second of two bridges may push the first target out of reach by one.
                let yes = self.reachable(yes, 1);
                let no = self.reachable(no, 0);
                let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
                self.push(jump(BPF_JGE, above[0].first, jt, jf))
            }
        }
    }

    fn decide(&mut self, decision: Decision) -> usize {
        if let Some(place) = self.made.get(&decision)
            && self.distance(*place) < NEAR
        {
            return *place;
        }
        let place = match decision {
            Decision::Return(value) => self.push(instruction(RETURN, value)),
            Decision::Arguments(at) => {
                let place = self.arguments.get(&at).copied().unwrap_or_default();
                self.push(instruction(JUMP, self.distance(place) as u32))
            }
        };
        self.made.insert(decision, place);
        place
    }

    /// `place`, or a jump to it, so near that a conditional jump reaches it with `room` to spare.
    fn reachable(&mut self, place: usize, room: usize) -> usize {
        let distance = self.distance(place);
        if distance + room <= usize::from(u8::MAX) {
            return place;
        }
        self.push(instruction(JUMP, distance as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine;
    use super::*;

    fn outcome(program: &[sock_filter], arch: u32, nr: u32, arg: u64) -> u32 {
        machine::run(program, machine::Call { arch, nr, args: [arg; 6] }).ret
    }

    /// A filter as libseccomp might write it: a list, with a look at an argument at its end.
    fn list(numbers: impl Iterator<Item = u32>) -> Vec<sock_filter> {
        let mut program = vec![
            instruction(LOAD, ARCH),
            jump(BPF_JEQ, 7, 1, 0),
            instruction(RETURN, 99),
            instruction(LOAD, NR),
        ];
        for nr in numbers {
            program.extend([jump(BPF_JEQ, nr, 0, 1), instruction(RETURN, nr % 3)]);
        }
        program.extend([
            jump(BPF_JEQ, 5000, 0, 3),
            instruction(LOAD, 16),
            jump(BPF_JEQ, 40, 0, 1),
            instruction(RETURN, 11),
            instruction(RETURN, 12),
        ]);
        program
    }

    #[test]
    fn decides_the_same_in_less() {
        // Two of three are in ranges of one, so that the search is too long for short jumps.
        let program = list((0..1500).filter(|nr| nr % 7 != 0));
        let condensed = condense(&program).unwrap();
        assert!(condensed.len() > 600, "{}", condensed.len());
        for nr in (0..1600).chain([5000, X32_BIT, u32::MAX]) {
            for arch in [7, 8, 0] {
                for arg in [40, 41] {
                    let expected = outcome(&program, arch, nr, arg);
                    assert_eq!(outcome(&condensed, arch, nr, arg), expected, "{arch} {nr} {arg}");
                }
            }
        }
        let steps = |program: &[sock_filter]| {
            machine::run(program, machine::Call { arch: 7, nr: 1499, args: [0; 6] }).steps
        };
        assert!(steps(&condensed) < 30 && steps(&program) > 1000);
    }

    #[test]
    fn leaves_alone_what_it_does_not_follow() {
        let sound = list(0..100);
        assert!(condense(&sound).is_some());
        let with = |at: usize, instruction: sock_filter| {
            let mut program = sound.clone();
            program[at] = instruction;
            condense(&program)
        };
        // Arithmetic on the number, a mask of it, an order among architectures, and a decision
        // by number for architectures that are not known.
        assert!(with(4, instruction(libc::BPF_ALU | libc::BPF_AND, 1)).is_none());
        assert!(with(4, jump(BPF_JSET, 1, 0, 1)).is_none());
        assert!(with(1, jump(BPF_JGT, 7, 1, 0)).is_none());
        assert!(with(2, instruction(LOAD, NR)).is_none());
        // Short already, empty, or running out of its end.
        assert!(condense(&[instruction(RETURN, 1)]).is_none());
        assert!(condense(&[]).is_none());
        assert!(condense(&[instruction(LOAD, NR)]).is_none());
        assert!(condense(&[instruction(JUMP, 5), instruction(RETURN, 1)]).is_none());
    }
}
