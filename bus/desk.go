package bus

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// What a brain may answer besides, each on subjects of its own. The last token says what is asked.

// Batches takes many jobs at once.
type Batches interface {
	AdmitBatch(ctx context.Context, tenant string, r *jobs.BatchRequest) (jobs.BatchReply, error)
	Batch(ctx context.Context, tenant, id string) (jobs.Batch, error)
	Batches(ctx context.Context, tenant string, q jobs.BatchQuery) (jobs.BatchesReply, error)
	CancelBatch(ctx context.Context, tenant, id string) (canceled int, err error)
}

// Schedules brings in jobs again and again.
type Schedules interface {
	PutSchedule(ctx context.Context, tenant string, s jobs.Schedule) (jobs.Schedule, error)
	Schedules(ctx context.Context, tenant string) ([]jobs.Schedule, error)
	DeleteSchedule(ctx context.Context, tenant, name string) error
}

// Dead decides about jobs that cannot run.
type Dead interface {
	Redrive(ctx context.Context, tenant, id string) (jobs.Job, error)
	DropDead(ctx context.Context, tenant, id string) (jobs.Job, error)
}

// Operator looks after workers.
type Operator interface {
	Workers(ctx context.Context) ([]jobs.WorkerInfo, error)
	Cordon(ctx context.Context, worker string) (jobs.WorkerInfo, error)
	Uncordon(ctx context.Context, worker string) (jobs.WorkerInfo, error)
	Drain(ctx context.Context, worker string, within time.Duration) (jobs.WorkerInfo, error)
	RemoveWorker(ctx context.Context, worker string) (jobs.WorkerInfo, error)
}

// desk is what the brain answers besides, by subject.
func (s *serving) desk(ctx context.Context) map[string]handler {
	m := map[string]handler{}
	if b, ok := s.brain.(Batches); ok {
		s.large = newTurns(largeAtOnce, maxPendingBytes, func(m *nats.Msg) { s.bus.reply(m, inTime(s.submitLarge(b))(ctx, m)) })
		m[jobs.BatchSubjects] = inTime(func(ctx context.Context, m *nats.Msg) any { return s.batches(ctx, b, m) })
	}
	if b, ok := s.brain.(Schedules); ok {
		m[jobs.ScheduleSubjects] = inTime(func(ctx context.Context, m *nats.Msg) any { return s.schedules(ctx, b, m) })
	}
	if b, ok := s.brain.(Dead); ok {
		m[jobs.DeadSubjects] = inTime(func(ctx context.Context, m *nats.Msg) any { return s.dead(ctx, b, m) })
	}
	if b, ok := s.brain.(Operator); ok {
		m[jobs.FleetSubjects] = inTime(func(ctx context.Context, m *nats.Msg) any { return s.operator(ctx, b, m) })
	}
	return m
}

// unasked answers what no subject is for.
func unasked(m *nats.Msg) *jobs.Error {
	return &jobs.Error{Code: jobs.CodeInvalid, Message: fmt.Sprintf("nothing is asked with %.80q", token(m.Subject, 4))}
}

func (s *serving) batches(ctx context.Context, b Batches, m *nats.Msg) any {
	tenant := token(m.Subject, 3)
	if token(m.Subject, 4) == "submit" {
		return s.submitBatch(ctx, b, m)
	}
	var q jobs.BatchQuery
	warnings, err := jobs.DecodeRequest(m.Data, &q)
	var r jobs.BatchesReply
	if err == nil {
		switch token(m.Subject, 4) {
		case "get":
			var one jobs.Batch
			if one, err = b.Batch(ctx, tenant, q.ID); err == nil {
				r.Batches = []jobs.Batch{one}
			}
		case "list":
			r, err = b.Batches(ctx, tenant, q)
		case "cancel":
			r.Canceled, err = b.CancelBatch(ctx, tenant, q.ID)
		default:
			return failure{unasked(m)}
		}
	}
	r.Warnings, r.Error = warnings, s.errorOf(err)
	return &r
}

// submitBatch answers a batch, but for a large one: that has a turn of its own to be answered in.
func (s *serving) submitBatch(ctx context.Context, b Batches, m *nats.Msg) any {
	q, warnings, err := jobs.DecodeBatch(m.Data)
	if err != nil {
		return &jobs.BatchReply{Warnings: warnings, Error: s.errorOf(err)}
	}
	if q.Object != nil || len(q.Defaults)*min(len(q.Jobs), jobs.MaxBatch) > largeBytes {
		if !s.large.add(token(m.Subject, 3), m) {
			return failure{waitTooMany()}
		}
		return nil
	}
	return s.admitBatch(ctx, b, m, q, warnings)
}

// submitLarge answers a large batch.
func (s *serving) submitLarge(b Batches) handler {
	return func(ctx context.Context, m *nats.Msg) any {
		q, warnings, err := jobs.DecodeBatch(m.Data) // as before
		if err == nil && q.Object != nil {
			q.Jobs, err = s.bus.object(ctx, token(m.Subject, 3), q)
		}
		if err != nil {
			return &jobs.BatchReply{Warnings: warnings, Error: s.errorOf(err)}
		}
		return s.admitBatch(ctx, b, m, q, warnings)
	}
}

// admitBatch has a batch taken, of whose own fields there are warnings already.
func (s *serving) admitBatch(ctx context.Context, b Batches, m *nats.Msg, q *jobs.BatchRequest, warnings []string) any {
	r, err := b.AdmitBatch(ctx, token(m.Subject, 3), q)
	r.Warnings = append(warnings, r.Warnings...)
	if r.Error = s.errorOf(err); err != nil {
		return &jobs.BatchReply{Error: r.Error, Warnings: r.Warnings}
	}
	s.outcomesFit(&r)
	return &r
}

// outcomesFit takes from the outcomes of jobs that were not taken what no message carries with all the others: first their faults, then what people
// read. What became of each job is told, or nobody knew which were taken.
func (s *serving) outcomesFit(r *jobs.BatchReply) {
	for _, most := range []int{200, 0} {
		data, err := encode(r)
		if err != nil || s.bus.nc.fits(len(data)) {
			return
		}
		for i := range r.Items {
			e := r.Items[i].Error
			if e == nil {
				continue
			}
			message := e.Message
			if len(e.Faults) > 0 {
				message += ": " + e.Faults[0].Path + ": " + e.Faults[0].Message
			}
			r.Items[i].Error = &jobs.Error{Code: e.Code, Message: strings.ToValidUTF8(message[:min(len(message), most)], ""), RetryAfterMS: e.RetryAfterMS}
		}
	}
}

const (
	// batchesAtOnce bounds the memory that batches take while they are read; further ones wait for their tenant's turn.
	batchesAtOnce = 32
	// largeAtOnce is how many large batches are read at once: those that come as an object, and those that their defaults make larger than
	// largeBytes.
	largeAtOnce = 4
	largeBytes  = 4 << 20
)

// object gives the jobs of a batch that has them as an object.
func (b *Bus) object(ctx context.Context, tenant string, q *jobs.BatchRequest) ([]json.RawMessage, error) {
	if len(q.Jobs) > 0 {
		return nil, &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid batch", Faults: []jobs.Fault{{Path: "object", Message: "give one of jobs and object"}}}
	}
	return b.lines(ctx, tenant, *q.Object)
}

// lines reads a batch's specs from an object, one a line.
func (b *Bus) lines(ctx context.Context, tenant string, ref jobs.ObjectRef) (list []json.RawMessage, err error) {
	r, err := b.GetObject(ctx, tenant, ref)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	sum := sha256.New()
	in := bufio.NewScanner(io.TeeReader(io.LimitReader(r, jobs.MaxBatchBytes+1), sum))
	in.Buffer(nil, jobs.MaxSpecBytes)
	size := 0
	for in.Scan() {
		if size += len(in.Bytes()) + 1; size > jobs.MaxBatchBytes {
			return nil, &jobs.Error{Code: jobs.CodeTooLarge, Message: fmt.Sprintf("the batch has more than %d bytes", jobs.MaxBatchBytes)}
		}
		if len(list) > jobs.MaxBatch {
			return nil, &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid batch", Faults: []jobs.Fault{{Path: "object", Message: fmt.Sprintf("has more than %d jobs", jobs.MaxBatch)}}}
		}
		if len(in.Bytes()) > 0 {
			list = append(list, json.RawMessage(append([]byte(nil), in.Bytes()...)))
		}
	}
	if err := in.Err(); err != nil {
		return nil, &jobs.Error{Code: jobs.CodeInvalid, Message: "the batch's object cannot be read: " + err.Error()}
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != ref.SHA256 {
		return nil, &jobs.Error{Code: jobs.CodeInvalid, Message: "invalid batch", Faults: []jobs.Fault{{Path: "object.sha256", Message: "the object's digest is " + got}}}
	}
	return list, nil
}

func (s *serving) schedules(ctx context.Context, b Schedules, m *nats.Msg) any {
	tenant := token(m.Subject, 3)
	var r jobs.SchedulesReply
	var err error
	switch token(m.Subject, 4) {
	case "put":
		var one jobs.Schedule
		if r.Warnings, err = jobs.DecodeRequest(m.Data, &one); err == nil {
			if one, err = b.PutSchedule(ctx, tenant, one); err == nil {
				r.Schedules = []jobs.Schedule{one}
			}
		}
	case "list":
		r.Schedules, err = b.Schedules(ctx, tenant)
	case "delete":
		var q jobs.ScheduleQuery
		if r.Warnings, err = jobs.DecodeRequest(m.Data, &q); err == nil {
			err = b.DeleteSchedule(ctx, tenant, q.Name)
		}
	default:
		return failure{unasked(m)}
	}
	r.Error = s.errorOf(err)
	return &r
}

func (s *serving) dead(ctx context.Context, b Dead, m *nats.Msg) any {
	do := map[string]func(context.Context, string, string) (jobs.Job, error){"redrive": b.Redrive, "drop": b.DropDead}[token(m.Subject, 4)]
	if do == nil {
		return failure{unasked(m)}
	}
	var q jobs.DeadRequest
	var r jobs.DeadReply
	var err error
	if r.Warnings, err = jobs.DecodeRequest(m.Data, &q); err == nil {
		var j jobs.Job
		if j, err = do(ctx, token(m.Subject, 3), q.ID); err == nil {
			j.Spec = nil // the dead job's record has it
			r.Job = &j
		}
	}
	r.Error = s.errorOf(err)
	return &r
}

func (s *serving) operator(ctx context.Context, b Operator, m *nats.Msg) any {
	var q jobs.FleetRequest
	var r jobs.FleetReply
	var err error
	if r.Warnings, err = jobs.DecodeRequest(m.Data, &q); err == nil {
		var one jobs.WorkerInfo
		switch token(m.Subject, 4) {
		case "list":
			r.Workers, err = b.Workers(ctx)
			r.Error = s.errorOf(err)
			s.shortenFleet(&r)
			return &r
		case "cordon":
			one, err = b.Cordon(ctx, q.Worker)
		case "uncordon":
			one, err = b.Uncordon(ctx, q.Worker)
		case "drain":
			one, err = b.Drain(ctx, q.Worker, time.Duration(q.WithinMS)*time.Millisecond)
		case "remove":
			one, err = b.RemoveWorker(ctx, q.Worker)
		default:
			return failure{unasked(m)}
		}
		if err == nil {
			r.Workers = []jobs.WorkerInfo{one}
		}
	}
	r.Error = s.errorOf(err)
	return &r
}

// shortenFleet leaves out names of images where the answer is more than a message takes: those of snapshots first, of which clients make as many as
// they like.
func (s *serving) shortenFleet(r *jobs.FleetReply) {
	for _, goes := range []func(image string) bool{func(image string) bool { return jobs.SnapshotTenant(image) != "" }, func(string) bool { return true }} {
		data, err := encode(r)
		if err != nil {
			panic(err) // plain data
		}
		if s.bus.nc.fits(len(data)) {
			return
		}
		for i := range r.Workers {
			r.Workers[i].Images = slices.DeleteFunc(r.Workers[i].Images, goes)
		}
	}
}
