package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxQMPMessage bounds one message of QEMU's. The largest that we ask for is under 1 KiB; QEMU is not trusted to know that.
const maxQMPMessage = 256 << 10

// qmp is one end of a QMP connection (docs/interop/qmp-spec.txt in QEMU's source): JSON objects, one per line. Commands may be
// executed concurrently; replies find their command by id.
type qmp struct {
	conn    *net.UnixConn
	onEvent func(qmpEvent) // called by the reader: must not block
	ready   chan struct{}  // closed after the greeting
	ended   chan struct{}  // closed when the reader has ended; err is set before
	err     error
	writing chan struct{} // held by the one who writes

	mu    sync.Mutex
	id    uint64
	calls map[uint64]chan<- qmpMessage
}

// qmpEvent is something that QEMU tells without being asked.
type qmpEvent struct {
	Name string
	Data json.RawMessage
}

// qmpMessage is anything that QEMU says.
type qmpMessage struct {
	QMP    json.RawMessage `json:"QMP"`
	ID     *uint64         `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *qmpError       `json:"error"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// qmpError is QEMU's refusal of a command.
type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

// newQMP owns conn and reads it until close. onEvent may be called before newQMP returns.
func newQMP(conn *net.UnixConn, onEvent func(qmpEvent)) *qmp {
	q := &qmp{
		conn: conn, onEvent: onEvent,
		ready: make(chan struct{}), ended: make(chan struct{}), writing: make(chan struct{}, 1),
		calls: make(map[uint64]chan<- qmpMessage),
	}
	go q.read()
	return q
}

// negotiate waits for the greeting and enters command mode. Only then does QEMU send events.
func (q *qmp) negotiate(ctx context.Context) error {
	select {
	case <-q.ready:
	case <-q.ended:
		return fmt.Errorf("wait for the qmp greeting: %w", q.err)
	case <-ctx.Done():
		return fmt.Errorf("wait for the qmp greeting: %w", context.Cause(ctx))
	}
	return q.execute(ctx, "qmp_capabilities", nil, nil)
}

// close ends the connection and waits for the reader. It is idempotent.
func (q *qmp) close() {
	_ = q.conn.Close()
	<-q.ended
}

// execute runs a command and decodes what it returns into result, unless that is nil. The files go with it (SCM_RIGHTS).
// A *qmpError is QEMU's own.
func (q *qmp) execute(ctx context.Context, command string, args, result any, files ...*os.File) error {
	q.mu.Lock()
	q.id++
	id, reply := q.id, make(chan qmpMessage, 1)
	q.calls[id] = reply
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.calls, id)
	}()

	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	if err := q.write(ctx, append(line, '\n'), files); err != nil {
		return fmt.Errorf("qmp %s: %w", command, err)
	}
	select {
	case m := <-reply:
		return q.decode(command, m, result)
	case <-ctx.Done():
		return fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
	case <-q.ended:
	}
	select { // the reply may have been the last thing read
	case m := <-reply:
		return q.decode(command, m, result)
	default:
		return fmt.Errorf("qmp %s: %w", command, q.err)
	}
}

func (q *qmp) decode(command string, m qmpMessage, result any) error {
	if m.Error != nil {
		return fmt.Errorf("qmp %s: %w", command, m.Error)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(m.Return, result); err != nil {
		return fmt.Errorf("qmp %s: decode the reply: %w", command, err)
	}
	return nil
}

// write sends one line whole, or, where it gives up half-way, ends the connection.
func (q *qmp) write(ctx context.Context, line []byte, files []*os.File) error {
	select {
	case q.writing <- struct{}{}:
		defer func() { <-q.writing }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	// A QEMU that does not read must not hold us longer than ctx.
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = q.conn.SetWriteDeadline(time.Unix(1, 0))
	})
	sent, err := q.send(line, files)
	if !stop() {
		<-interrupted
		switch {
		case sent == len(line): // in time
			err = nil
		case sent > 0:
			_ = q.conn.Close()
			return context.Cause(ctx)
		default:
			err = context.Cause(ctx)
		}
		return errors.Join(err, q.conn.SetWriteDeadline(time.Time{}))
	}
	return err
}

// send writes a line, and tells how much of it it has.
func (q *qmp) send(line []byte, files []*os.File) (sent int, err error) {
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		sent, _, err = q.conn.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
		if err != nil || sent == len(line) {
			return sent, err
		}
	}
	n, err := q.conn.Write(line[sent:])
	return sent + n, err
}

func (q *qmp) read() {
	defer close(q.ended)
	s := bufio.NewScanner(q.conn)
	s.Buffer(make([]byte, 4<<10), maxQMPMessage)
	greeted := false
	for s.Scan() {
		line := bytes.TrimSpace(s.Bytes())
		if len(line) == 0 {
			continue
		}
		var m qmpMessage
		if err := json.Unmarshal(line, &m); err != nil {
			q.err = fmt.Errorf("qmp: %w", err)
			return
		}
		switch {
		case !greeted:
			if m.QMP == nil {
				q.err = errors.New("qmp: no greeting")
				return
			}
			greeted = true
			close(q.ready)
		case m.Event != "":
			q.onEvent(qmpEvent{Name: m.Event, Data: bytes.Clone(m.Data)})
		case m.ID != nil:
			q.answer(*m.ID, m)
		}
	}
	q.err = errors.New("qmp: connection closed")
	if err := s.Err(); err != nil {
		q.err = fmt.Errorf("qmp: %w", err)
	}
}

// answer hands a reply to the command that waits for it, if one still does.
func (q *qmp) answer(id uint64, m qmpMessage) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if reply, ok := q.calls[id]; ok {
		delete(q.calls, id)
		reply <- m
	}
}
