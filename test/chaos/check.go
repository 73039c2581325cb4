package chaos

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/paddockvm/paddock/jobs"
)

// checker compares the witnesses.
type checker struct {
	*witnesses
	l *load
	// forgetful says that the broker was made to forget what it had acknowledged: events may be missing then, and must be marked.
	forgetful bool
	r         *Report
	faults    []happened
	width     int
	patience  time.Duration // with one history
}

func (c *checker) wrong(format string, args ...any) {
	c.r.Wrong = append(c.r.Wrong, fmt.Sprintf(format, args...))
}

func (c *checker) check() {
	tasks := map[string]bool{} // jobs that asynq's tasks became
	for _, u := range c.l.units {
		for _, j := range u.jobs {
			if j.via == viaAsynq && j.accepted {
				t := c.tasks[j.id]
				if tasks[t.Job] {
					c.wrong("two tasks are the job %s", t.Job)
				}
				j.id, tasks[t.Job] = t.Job, true
			}
			c.job(j)
		}
	}
	for id, rec := range c.records {
		if c.l.byID[id] == nil && !tasks[id] {
			c.r.Doubled++
			c.wrong("job %s of %s is nobody's: it was brought in twice", id, rec.Tenant)
		}
	}
	for id, events := range c.seen {
		if rec := c.records[id]; rec != nil {
			c.followed(id, rec, events)
		}
	}
	c.order()
	c.caps()
	c.leases()
}

// followed checks what a client sees that follows a job: each attempt's events without gaps, or with a mark where some are missing, and
// the final one as the last.
func (c *checker) followed(id string, rec *record, events []jobs.Event) {
	attempt, seq, over := 0, int64(0), 0
	for i, e := range events {
		if e.Attempt > 0 && e.Attempt <= over && !e.Final {
			c.wrong("job %s: who follows it sees %d.%d after that attempt's end", id, e.Attempt, e.Seq)
		}
		if e.State == jobs.StateQueued {
			over = e.Attempt
		}
		next := e.Attempt == attempt && e.Seq == seq+1 || e.Attempt > attempt && e.Seq == 1
		switch {
		case e.Type == jobs.EventLost:
			c.r.Marked++
			if !c.forgetful {
				c.wrong("job %s: events are lost: %+v", id, *e.Lost)
			}
		case !next && (!e.Final || !c.forgetful):
			c.wrong("job %s: who follows it sees %d.%d after %d.%d", id, e.Attempt, e.Seq, attempt, seq)
		}
		attempt, seq = e.Attempt, e.Seq
		if e.Final != (i == len(events)-1) {
			c.wrong("job %s: who follows it sees %d events, and the %d. says final %v", id, len(events), i+1, e.Final)
		}
		if e.Final && (e.Result.Ending != rec.Result.Ending || e.Attempt != rec.Attempt) {
			c.wrong("job %s: who follows it sees it end %s in attempt %d, and the ledger has %s in %d", id, e.Result.Ending, e.Attempt, rec.Result.Ending, rec.Attempt)
		}
	}
	if len(events) == 0 {
		c.wrong("job %s: who follows it sees nothing", id)
	}
}

// job checks one job.
func (c *checker) job(j *job) {
	rec := c.records[j.id]
	switch {
	case rec == nil && !j.accepted:
		return
	case rec == nil:
		c.r.Lost++
		c.wrong("job %s (%s) was accepted and is not in the ledger", j.id, j.via)
		return
	case !rec.State.Terminal() || rec.Result == nil:
		c.r.Lost++
		c.wrong("job %s (%s) has not ended: it is %s, attempt %d on %q", j.id, j.via, rec.State, rec.Attempt, rec.Worker)
		return
	}
	c.r.Jobs++
	if j.unheard {
		c.r.Machines++
	}
	c.r.Attempts += rec.Attempt
	c.r.Endings[string(rec.Result.Ending)]++
	if why := j.judge(rec.Result); why != "" {
		c.wrong("job %s (%s): %s; attempts before: %+v", j.id, j.via, why, rec.Attempts)
	}
	if rec.State == jobs.StateDead {
		c.r.Dead++
	}
	c.attempts(j, rec)
	c.told(j, rec)
	if !c.forgetful || len(c.events[j.id]) > 0 {
		c.stream(j, rec)
	}
	c.history(j, history(j, rec, c.runs(j.id), c.over))
}

// history checks that a history is one that a job can have. One that takes too long to look at is wrong too: it is where none is found that
// all are looked for.
func (c *checker) history(j *job, l []operation) {
	linear, known := judgeHistory(l, c.over, c.patience)
	switch {
	case !known:
		c.r.Unjudged++
		c.wrong("job %s: its history took longer than %v to look at: %s", j.id, c.patience, printed(l))
	case !linear:
		c.wrong("job %s: its history is not one that a job can have: %s", j.id, printed(l))
	}
}

func printed(l []operation) string {
	var b strings.Builder
	slices.SortFunc(l, func(x, y operation) int { return x.call.Compare(y.call) })
	for _, o := range l {
		fmt.Fprintf(&b, "\n\t%s … %s %s %d %s", o.call.Format("05.000000"), o.ret.Format("05.000000"), o.name, o.attempt, o.ending)
		if o.out != nil {
			fmt.Fprintf(&b, " %+v", *o.out)
		}
	}
	return b.String()
}

// attempts checks a record against what ran.
func (c *checker) attempts(j *job, rec *record) {
	if rec.Result.Attempt != rec.Attempt {
		c.wrong("job %s: the result is of attempt %d, and the job at %d", j.id, rec.Result.Attempt, rec.Attempt)
	}
	users := 1
	for i, a := range rec.Attempts {
		if a.Attempt != i+1 {
			c.wrong("job %s: attempt %d is noted as the %d.", j.id, a.Attempt, i+1)
		}
		if a.Class == jobs.ClassUser {
			users++
		} else {
			c.r.Retried[string(a.Ending)]++
		}
	}
	if j.tries > 0 && rec.Result.Ending == jobs.Exited && users != j.tries {
		c.wrong("job %s failed by itself in %d attempts, and was to in %d", j.id, users, j.tries)
	}
	ran := map[int]int{}
	whole := false
	for _, r := range c.runs(j.id) {
		ran[r.attempt]++
		whole = whole || r.whole && r.attempt == rec.Attempt
		if r.attempt > rec.Attempt {
			c.wrong("job %s: attempt %d ran, which the ledger does not know", j.id, r.attempt)
		}
		if _, _, counts := rec.life(r); !counts || r.attempt < rec.Attempt && r.whole && rec.Attempts[r.attempt-1].Class == jobs.ClassInfra {
			c.r.Fenced++
		}
	}
	for n, times := range ran {
		if times > 1 {
			c.r.Doubled++
			c.wrong("job %s: attempt %d ran %d times", j.id, n, times)
		}
	}
	if rec.Result.Ending == jobs.Exited && !whole && !j.unheard && j.code != 75 && !strings.Contains(j.spec.Steps[0].Shell, "exit 75;") {
		c.wrong("job %s: its result is of attempt %d, and that did not run to its end", j.id, rec.Attempt)
	}
}

// told checks what clients and webhooks' receivers were told.
func (c *checker) told(j *job, rec *record) {
	if len(j.finals) > 1 {
		c.r.Doubled++
		c.wrong("job %s: its client was told of %d ends: %+v", j.id, len(j.finals), j.finals)
	}
	for _, e := range j.finals {
		if e.Attempt != rec.Attempt || e.Result.Ending != rec.Result.Ending {
			c.wrong("job %s: its client was told %s in attempt %d, and the ledger has %s in %d", j.id, e.Result.Ending, e.Attempt, rec.Result.Ending, rec.Attempt)
		}
	}
	hooks := c.hooks(j.id)
	if len(hooks) == 0 {
		c.wrong("job %s: no webhook told of its end", j.id)
	}
	c.r.Hooks += len(hooks)
	for _, h := range hooks {
		if h.id != hooks[0].id {
			c.r.Doubled++
			c.wrong("job %s: its end is two webhooks, %s and %s", j.id, h.id, hooks[0].id)
		}
		if h.data.Ending != rec.Result.Ending || h.data.Attempt != rec.Attempt {
			c.wrong("job %s: a webhook told %s in attempt %d, and the ledger has %s in %d", j.id, h.data.Ending, h.data.Attempt, rec.Result.Ending, rec.Attempt)
		}
	}
}

// stream checks a job's events: of each attempt without gaps and each once, up to the one that ends it, and one that is final. What comes
// after the end of a lost attempt is its worker's, who does not know it.
func (c *checker) stream(j *job, rec *record) {
	last, over := map[int]int64{}, map[int]bool{}
	finals := 0
	for _, e := range c.events[j.id] {
		if over[e.Attempt] && rec.lost(e.Attempt) && !e.Final {
			c.r.Late++
			continue
		}
		if e.Seq != last[e.Attempt]+1 && !c.forgetful {
			c.wrong("job %s: event %d.%d follows %d.%d: its events are %s", j.id, e.Attempt, e.Seq, e.Attempt, last[e.Attempt], listed(c.events[j.id]))
		}
		last[e.Attempt] = e.Seq
		over[e.Attempt] = over[e.Attempt] || e.Final || e.State == jobs.StateQueued
		if !e.Final {
			continue
		}
		if finals++; e.Attempt != rec.Attempt || e.Result.Ending != rec.Result.Ending {
			c.wrong("job %s: the final event is %s in attempt %d, and the ledger has %s in %d", j.id, e.Result.Ending, e.Attempt, rec.Result.Ending, rec.Attempt)
		}
	}
	if finals > 1 {
		c.r.Doubled++
	}
	if finals > 1 || finals == 0 && !c.forgetful {
		c.wrong("job %s has %d final events", j.id, finals)
	}
}

// listed names events.
func listed(events []jobs.Event) string {
	var s []string
	for _, e := range events {
		what := string(e.Type)
		if e.Final {
			what += " final " + string(e.Result.Ending)
		}
		s = append(s, fmt.Sprintf("%d.%d %s %s %q", e.Attempt, e.Seq, what, e.Time.Format("05.000"), e.Reason))
	}
	return strings.Join(s, ", ")
}

// order checks that what depends on a job began after it.
func (c *checker) order() {
	for _, u := range c.l.units {
		for _, j := range u.jobs {
			for _, needs := range j.spec.DependsOn {
				before := c.records[needs]
				for _, r := range c.runs(j.id) {
					if before == nil || r.begin.Before(before.end.earliest) {
						c.wrong("job %s began %s, before %s, on which it depends, had ended", j.id, r.begin, needs)
					}
				}
			}
		}
	}
}

// leases checks that no lease has ended because a clock was set: that none was lost soon after that, when nothing else had been broken for
// longer than a lease.
func (c *checker) leases() {
	const soon, long = 3 * time.Second, 3 * (leaseTTL + leaseGrace)
	for id, rec := range c.records {
		for _, a := range rec.Attempts {
			at := rec.over(a.Attempt)
			if a.Ending != jobs.WorkerLost || strings.Contains(a.Reason, "started anew") || at.earliest != at.latest {
				continue
			}
			set, other := false, false
			for _, f := range c.faults {
				after := func(t time.Time) bool { return at.latest.After(t) && at.latest.Before(t.Add(soon)) }
				set = set || f.quiet && (after(f.from) || after(f.until))
				other = other || !f.quiet && f.from.Before(at.latest) && at.latest.Before(f.until.Add(long))
			}
			if set && !other {
				c.wrong("job %s: attempt %d was lost when a clock was set: %s", id, a.Attempt, a.Reason)
			}
		}
	}
}

// change is one more that runs, or one less.
type change struct {
	at  time.Time
	n   int
	job string
}

// caps checks that never more ran at once than a tenant's quota and a key's limit allow.
func (c *checker) caps() {
	running, keyed := map[string][]change{}, map[string][]change{}
	for _, u := range c.l.units {
		for _, j := range u.jobs {
			rec := c.records[j.id]
			if rec == nil {
				continue
			}
			for _, r := range c.runs(j.id) {
				begin, end, counts := rec.life(r)
				if !counts {
					continue
				}
				both := []change{{begin, 1, j.id}, {end, -1, j.id}}
				running[j.tenant] = append(running[j.tenant], both...)
				if k := j.spec.Concurrency.Key; k != "" {
					keyed[j.tenant+" "+k] = append(keyed[j.tenant+" "+k], both...)
				}
			}
		}
	}
	for _, t := range tenants {
		most, with := atOnce(running[t.name])
		c.r.Most[t.name] = most
		if may := t.running * c.width; may > 0 && most > may {
			c.wrong("%d jobs of %s ran at once, and %d may: %s", most, t.name, may, strings.Join(with, " "))
		}
	}
	for key, l := range keyed {
		if most, with := atOnce(l); most > keyLimit*c.width {
			c.wrong("%d jobs with the key %s ran at once, and %d may: %s", most, key, keyLimit*c.width, strings.Join(with, " "))
		}
	}
}

// atOnce is the most that there were at one time, and which. Who ends at a time does so before another begins.
func atOnce(l []change) (most int, with []string) {
	slices.SortFunc(l, func(a, b change) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.n, b.n)) })
	now := map[string]int{}
	n := 0
	for _, x := range l {
		n += x.n
		now[x.job] += x.n
		if n > most {
			most, with = n, nil
			for job, k := range now {
				if k > 0 {
					with = append(with, job)
				}
			}
		}
	}
	return most, with
}
