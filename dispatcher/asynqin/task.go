package asynqin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"github.com/paddockvm/paddock/jobs"
)

// This file is all that touches asynq's keys past asynq's own functions, and why. They are those of asynq 0.26: asynq:{QUEUE}:t:ID is a
// task's hash, with the fields msg, state and result; active and pending are lists of ids, lease a sorted set of them by Unix time. The
// scripts name one queue's keys only, which are in one slot of a cluster.

// task is one of a queue, at a pickup.
type task struct {
	queue, id string
	retried   int // as asynq counts
}

// key is the task's hash.
func (t task) key() string { return "asynq:{" + t.queue + "}:t:" + t.id }

// resultKey is where the result is besides, for a while: asynq deletes a task that has succeeded and names no retention. The queue is in
// it because ids are unique in a queue only, and because a producer's rights end at its queues.
func (t task) resultKey() string { return "paddock:result:{" + t.queue + "}:" + t.id }

// mapping says which job a task is. It is a field of the task's hash, so that it lives for exactly as long as the task does: a new task
// with an old one's id is a new job. asynq does not know the field, and keeps it.
type mapping struct {
	Job string `json:"job"`
	// Run counts the task's jobs from 1.
	Run int `json:"run"`
	// Retried is asynq's count when it began.
	Retried int `json:"retried"`
}

const mappingField = "paddock"

// claimScript writes a task's mapping, where it is still the one that was expected, and gives the one that stands, and, where it wrote, how
// many replicas the server has. A new run has no result yet.
var claimScript = redis.NewScript(`
if redis.call("EXISTS", KEYS[1]) == 0 then return {"", 0} end
local has = redis.call("HGET", KEYS[1], ARGV[1]) or ""
if has ~= ARGV[2] then return {has, 0} end
redis.call("HSET", KEYS[1], ARGV[1], ARGV[3])
redis.call("DEL", KEYS[2])
local info = redis.pcall("INFO", "replication")
return {ARGV[3], type(info) == "string" and tonumber(string.match(info, "connected_slaves:(%d+)")) or 0}`)

// replicateWithin bounds the wait for a replica. It is less than go-redis waits for an answer.
const replicateWithin = time.Second

// putScript writes a result as asynq's ResultWriter does, but never makes a hash of a task that is gone, which would keep its id in use
// for ever, and also where the task's context has ended.
var putScript = redis.NewScript(`
redis.call("SET", KEYS[2], ARGV[1], "EX", ARGV[2])
if redis.call("EXISTS", KEYS[1]) == 1 then redis.call("HSET", KEYS[1], "result", ARGV[1]) end
return 1`)

// reclaimScript does to tasks whose lease has run out what a bridge that ends does to its own: back to the head of the queue. A task
// that two bridges have for a moment, because their clocks differ, is one job all the same.
var reclaimScript = redis.NewScript(`
local n, living = 0, {}
for i = 4, #ARGV do living[ARGV[i]] = true end
local function take(from, to)
	for _, id in ipairs(redis.call("ZRANGEBYSCORE", KEYS[1], from, to, "LIMIT", 0, 500)) do
		if not living[id] then
			redis.call("ZREM", KEYS[1], id)
			if redis.call("LREM", KEYS[2], 0, id) > 0 and redis.call("EXISTS", ARGV[3] .. id) == 1 then
				redis.call("RPUSH", KEYS[3], id)
				redis.call("HSET", ARGV[3] .. id, "state", "pending")
				n = n + 1
			end
		end
	end
end
take("-inf", ARGV[1])
take("(" .. ARGV[2], "+inf")
return n`)

// withoutRecoverer is Redis as asynq's server is to see it: no lease has run out. Its recoverer, which cannot be turned off, waits half a
// minute longer than reclaim does, looks once a minute, and archives a task that has no retries left while its job runs: after a minute
// without Redis it was a matter of luck who looked first.
type withoutRecoverer struct{ redis.UniversalClient }

// EvalSha and Eval know the script that lists leases by its only key.
func (r withoutRecoverer) EvalSha(ctx context.Context, sha string, keys []string, args ...any) *redis.Cmd {
	if listsLeases(keys) {
		return redis.NewCmdResult([]any{}, nil)
	}
	return r.UniversalClient.EvalSha(ctx, sha, keys, args...)
}

func (r withoutRecoverer) Eval(ctx context.Context, script string, keys []string, args ...any) *redis.Cmd {
	if listsLeases(keys) {
		return redis.NewCmdResult([]any{}, nil)
	}
	return r.UniversalClient.Eval(ctx, script, keys, args...)
}

func listsLeases(keys []string) bool { return len(keys) == 1 && strings.HasSuffix(keys[0], "}:lease") }

// longestLease is longer than any that asynq gives, which are of half a minute: one that ends later is of a clock that was ahead.
const longestLease = time.Minute

// claim gives the job that the task is: known, where the task had one that asynq has not recorded the end of, or else a new one.
func (b *bridge) claim(ctx context.Context, t task, id string) (m mapping, known bool, err error) {
	if id == "" {
		id = jobs.NewID()
	}
	fresh := mapping{Job: id, Run: 1, Retried: t.retried}
	if m, err = b.write(ctx, t, "", fresh); err != nil || m == fresh {
		return m, false, err
	}
	recorded, err := b.recorded(ctx, t, m)
	if err != nil || !recorded {
		return m, true, err
	}
	m, err = b.claimAnew(ctx, t, m)
	return m, false, err
}

// claimAnew maps the task to a new job, after the one that it was.
func (b *bridge) claimAnew(ctx context.Context, t task, was mapping) (mapping, error) {
	return b.write(ctx, t, was.encode(), mapping{Job: jobs.NewID(), Run: was.Run + 1, Retried: t.retried})
}

// remap maps the same run to another job.
func (b *bridge) remap(ctx context.Context, t task, was mapping, job string) (mapping, error) {
	return b.write(ctx, t, was.encode(), mapping{Job: job, Run: was.Run, Retried: was.Retried})
}

// recorded tells whether asynq has recorded the end of the task's job. Then it is another run that is wanted: a retry, or somebody has
// put the task back who had it in the archive.
func (b *bridge) recorded(ctx context.Context, t task, m mapping) (recorded bool, err error) {
	err = b.insist(ctx, t, func() error {
		info, err := b.inspector.GetTaskInfo(t.queue, t.id)
		if errors.Is(err, asynq.ErrTaskNotFound) {
			return errGone
		}
		if err == nil {
			recorded = !info.CompletedAt.IsZero() || strings.HasPrefix(info.LastErr, names(m.Job))
		}
		return err
	})
	return recorded, err
}

// write writes a mapping in the place of another, and gives the one that stands.
func (b *bridge) write(ctx context.Context, t task, was string, m mapping) (stands mapping, err error) {
	err = b.insist(ctx, t, func() error {
		text, replicas, err := claimed(claimScript.Run(ctx, b.cfg.Redis, []string{t.key(), t.resultKey()}, mappingField, was, m.encode()))
		if err != nil {
			return err
		}
		if text == "" {
			return errGone
		}
		if stands, err = decodeMapping(text); err == nil && replicas > 0 {
			b.replicate(ctx, t, m)
		}
		return err
	})
	return stands, err
}

// claimed reads claimScript's answer.
func claimed(c *redis.Cmd) (text string, replicas int64, err error) {
	l, err := c.Slice()
	if err != nil {
		return "", 0, err
	}
	if len(l) == 2 {
		text, _ = l[0].(string)
		replicas, _ = l[1].(int64)
	}
	return text, replicas, nil
}

// replicate waits until a replica has the mapping too, so that it knows, should it take the server's place, which job the task is. It does not
// wait for ever: a replica that hangs is not to keep out every task.
func (b *bridge) replicate(ctx context.Context, t task, m mapping) {
	var server redis.Cmdable = b.cfg.Redis
	if c, ok := b.cfg.Redis.(*redis.ClusterClient); ok { // WAIT has no key that says to which node it goes
		if node, err := c.MasterForKey(ctx, t.key()); err == nil {
			server = node
		}
	}
	// WAIT is about what its own connection has written: the same once more.
	pipe := server.Pipeline()
	pipe.EvalSha(ctx, claimScript.Hash(), []string{t.key(), t.resultKey()}, mappingField, m.encode(), m.encode())
	n := pipe.Do(ctx, "WAIT", 1, replicateWithin.Milliseconds())
	if _, err := pipe.Exec(ctx); err != nil || n.Val() == int64(0) {
		b.log.Warn().Err(err).Str("task", t.id).Str("job", m.Job).Msg("no replica of redis is known to know the task's job")
	}
}

// mapped gives the task's mapping; its zero value for none.
func (b *bridge) mapped(ctx context.Context, t task) (m mapping, err error) {
	text, err := b.cfg.Redis.HGet(ctx, t.key(), mappingField).Result()
	if errors.Is(err, redis.Nil) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	return decodeMapping(text)
}

func (m mapping) encode() string {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // plain data
	}
	return string(b)
}

func decodeMapping(text string) (m mapping, err error) {
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return m, &jobs.Error{Code: jobs.CodeInvalid, Message: fmt.Sprintf("the task's field %q is not Paddock's", mappingField)}
	}
	return m, nil
}

// put writes a task's result. It gives an error only when ctx has ended.
func (b *bridge) put(ctx context.Context, t task, r result) error {
	data := r.encode()
	return b.insist(ctx, t, func() error {
		return putScript.Run(ctx, b.cfg.Redis, []string{t.key(), t.resultKey()}, data, int(b.cfg.KeepResult/time.Second)).Err()
	})
}

// errGone is a task that is not in Redis any more: Redis has lost it, or somebody has deleted it by force.
var errGone = &jobs.Error{Code: jobs.CodeNotFound, Message: "the task is gone"}

// insist does something with Redis until it is done, ctx ends, or it is no use: an error is ctx's then, or a *jobs.Error.
func (b *bridge) insist(ctx context.Context, t task, do func() error) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		err := do()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e, ok := errors.AsType[*jobs.Error](err); ok {
			return e
		}
		b.log.Debug().Err(err).Str("task", t.id).Msg("redis: trying again")
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// reclaim gives back to its queues what has no living bridge. What this one has is not among that, whatever its clock makes of the leases: a
// task that another handler had while this one completes it would be held for one that is to run anew.
func (b *bridge) reclaim(ctx context.Context) {
	for _, q := range b.queues {
		root, now := "asynq:{"+q.name+"}:", time.Now().Unix()
		args := append([]any{now, now + int64(longestLease/time.Second), root + "t:"}, b.livingIn(q.name)...)
		n, err := reclaimScript.Run(ctx, b.cfg.Redis, []string{root + "lease", root + "active", root + "pending"}, args...).Int()
		if err != nil {
			b.log.Debug().Err(err).Str("queue", q.name).Msg("redis: abandoned tasks not looked for")
			continue
		}
		if n > 0 {
			b.log.Info().Int("tasks", n).Str("queue", q.name).Msg("abandoned tasks taken up again")
		}
	}
}

func (b *bridge) livingIn(queue string) (ids []any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for t := range b.living {
		if t.queue == queue {
			ids = append(ids, t.id)
		}
	}
	return ids
}

func (b *bridge) keepReclaiming(ctx context.Context) {
	tick := time.NewTicker(reclaimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			b.reclaim(ctx)
		}
	}
}
