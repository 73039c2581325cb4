package chaos

import (
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/paddockvm/paddock/jobs"
)

// What clients do, and what becomes of a job, is a history; it must be one that a single register could have, which is what a job is: it is
// submitted, attempts claim it one after the other, each gives it back or finishes it, and who reads it sees just that.

type opName string

const (
	opSubmit opName = "submit"
	opGet    opName = "get"
	opCancel opName = "cancel"
	// These come from the ledger's record and the programs' own words.
	opClaim   opName = "claim"
	opRequeue opName = "requeue"
	opFinish  opName = "finish"
)

// opKind is what a client knows of what it has asked for.
type opKind int

const (
	opKnown   opKind = iota
	opUnknown        // there was no answer: it may happen at any time, or never
	opNothing        // there was none, and it is the same as if it had never been asked
)

// seen is what a client was told.
type seen struct {
	missing bool
	state   jobs.State
	attempt int
	ending  jobs.Ending
}

// operation is one of a job's history. out is nil where it says nothing.
type operation struct {
	name    opName
	attempt int
	ending  jobs.Ending
	out     *seen
	call    time.Time
	ret     time.Time // zero: unknown
}

// begin notes that a client asks for something; the function that it gives notes what came of it.
func (j *job) begin(name opName) func(*seen, opKind) {
	o := operation{name: name, call: time.Now()}
	return func(s *seen, k opKind) {
		o.out = s
		if k == opKnown {
			o.ret = time.Now()
		}
		if k == opNothing {
			return
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		j.ops = append(j.ops, o)
	}
}

// register is a job as the model has it.
type register struct {
	state   jobs.State // empty: there is none. leased is running too: the record tells late (docs/adr/0002)
	attempt int
	cancel  bool
	ending  jobs.Ending
}

// step is what an operation makes of a register; false where it cannot have happened then.
func step(r register, o operation) (bool, register) {
	switch o.name {
	case opSubmit: // again is the same job
		if r.state == "" {
			r.state = jobs.StateQueued
		}
	case opGet:
		return o.out.missing == (r.state == "") && (o.out.missing || stands(o.out.state) == r.state && o.out.attempt == r.attempt && o.out.ending == r.ending), r
	case opCancel:
		if r.state == "" {
			return o.out == nil, r
		}
		if o.out != nil && stands(o.out.state) != r.state {
			return false, r
		}
		r.cancel = r.cancel || r.state != jobs.StateEnded
	case opClaim:
		if r.state != jobs.StateQueued || o.attempt != r.attempt+1 {
			return false, r
		}
		r.state, r.attempt = jobs.StateLeased, o.attempt
	case opRequeue:
		if r.state != jobs.StateLeased || o.attempt != r.attempt {
			return false, r
		}
		r.state = jobs.StateQueued
	case opFinish:
		if r.state != jobs.StateLeased && r.state != jobs.StateQueued || o.attempt != r.attempt || o.ending == jobs.Canceled && !r.cancel {
			return false, r
		}
		r.state, r.ending = jobs.StateEnded, o.ending
	}
	return true, r
}

func stands(s jobs.State) jobs.State {
	switch s {
	case jobs.StateRunning:
		return jobs.StateLeased
	case jobs.StateDead:
		return jobs.StateEnded
	}
	return s
}

// model is a register for each job: the partitions are made before.
func model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return register{} },
		Step: func(s, in, _ any) (bool, any) {
			ok, next := step(s.(register), in.(operation))
			return ok, next
		},
		DescribeOperation: func(in, _ any) string { return fmt.Sprintf("%+v", in) },
	}
}

// record is what the ledger has of a job. What its times say of when that was is in the moments.
type record struct {
	jobs.Job
	epoch       int64
	accepted    moment
	spans       []span // the attempts that others followed
	lastly, end moment // when the last one was leased, and when the job ended
}

// span is an attempt's time.
type span struct{ leased, over moment }

// reckon makes the moments of the times.
func (r *record) reckon(c *clocks) {
	at := func(t time.Time, worker string) moment { return c.moment(t, time.Microsecond, worker) }
	r.accepted, r.lastly, r.end = at(r.AcceptedAt, ""), at(r.LeasedAt, ""), at(r.EndedAt, r.Worker)
	for _, a := range r.Attempts {
		r.spans = append(r.spans, span{at(a.LeasedAt, ""), at(a.EndedAt, a.Worker)})
	}
}

// leased is when an attempt was; the last one's is in the record itself.
func (r *record) leased(attempt int) moment {
	if i := attempt - 1; i < len(r.spans) {
		return r.spans[i].leased
	}
	return r.lastly
}

// over is when an attempt was.
func (r *record) over(attempt int) moment {
	if i := attempt - 1; i < len(r.spans) {
		return r.spans[i].over
	}
	return r.end
}

// lost tells whether an attempt was ended without a word of its worker, who may have gone on for a while.
func (r *record) lost(attempt int) bool {
	without := func(e jobs.Ending) bool { return e == jobs.WorkerLost || e == jobs.Canceled }
	return attempt == r.Attempt && r.Result != nil && without(r.Result.Ending) ||
		slices.ContainsFunc(r.Attempts, func(a jobs.Attempt) bool { return a.Attempt == attempt && without(a.Ending) })
}

// history gives what is known of a job, from its client, its record and its programs' own words. over is when the run was.
func history(j *job, rec *record, runs []run, over time.Time) (l []operation) {
	l = slices.Clone(j.ops)
	if len(l) == 0 || !slices.ContainsFunc(l, func(o operation) bool { return o.name == opSubmit }) {
		l = append(l, operation{name: opSubmit, call: rec.accepted.earliest.Add(-time.Minute), ret: rec.accepted.latest})
	}
	for n := 1; n <= rec.Attempt; n++ {
		claimed := rec.over(n).latest
		for _, r := range runs {
			if r.attempt == n && r.begin.Before(claimed) {
				claimed = r.begin
			}
		}
		l = append(l, operation{name: opClaim, attempt: n, call: rec.leased(n).earliest, ret: claimed})
		if n-1 < len(rec.Attempts) {
			back := over
			if n < rec.Attempt {
				back = rec.leased(n + 1).latest
			}
			l = append(l, operation{name: opRequeue, attempt: n, call: rec.over(n).earliest, ret: back})
		}
	}
	known := over
	if !j.ended.IsZero() {
		known = j.ended
	}
	return append(l, operation{name: opFinish, attempt: rec.Attempt, ending: rec.Result.Ending, call: rec.end.earliest, ret: known})
}

// judgeHistory says whether a history is one of a register. It is not known of one that takes longer than patience to look at.
func judgeHistory(l []operation, over time.Time, patience time.Duration) (linear, known bool) {
	ops := make([]porcupine.Operation, len(l))
	for i, o := range l {
		ret := o.ret
		if ret.IsZero() {
			ret = over.Add(time.Hour)
		}
		ops[i] = porcupine.Operation{ClientId: i, Input: o, Call: o.call.UnixMicro(), Return: max(ret.UnixMicro(), o.call.UnixMicro())}
	}
	r := porcupine.CheckOperationsTimeout(model(), ops, patience)
	return r != porcupine.Illegal, r != porcupine.Unknown
}
