// Package client is Paddock's Go SDK: submit jobs over NATS, follow them, get their results. Everything it does can be done with any
// NATS client; docs/nats.md says how. It imports jobs and nats.go only.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/paddockvm/paddock/jobs"
)

// DefaultURL is where `paddock up` listens.
const DefaultURL = "nats://127.0.0.1:4222"

// pingEvery is how often a server is asked whether it is there: one that says nothing any more is left for another in 12 s at most.
const pingEvery = 3 * time.Second

// greetWithin is how long a server may take to greet that has taken the connection, and to say who may: on a loaded machine the 2 s of nats.go,
// which are for reaching it, are short.
const greetWithin = 10 * time.Second

// Client is one tenant's connection. Its methods may be called concurrently. Errors that Paddock answered are *jobs.Error; so is that nobody has
// answered, within 30 s or before the connection was lost: "unavailable", and what was asked may have been done.
type Client struct {
	nc     *nats.Conn
	tenant string
}

// Option changes how Connect connects.
type Option func(*options)

type options struct {
	tenant string
	creds  string
	nats   []nats.Option
}

// Tenant says whose jobs these are; "default" is the default.
func Tenant(name string) Option { return func(o *options) { o.tenant = name } }

// Credentials names a file that lets in: the seed of an NKEY, which `paddock credential add` prints, or a NATS credentials file. Empty is for
// servers that are open, and for a name and a password in the URL.
func Credentials(file string) Option { return func(o *options) { o.creds = file } }

// NATS passes options of nats.go on: TLS, a name.
func NATS(opts ...nats.Option) Option { return func(o *options) { o.nats = append(o.nats, opts...) } }

// Connect connects to the NATS servers at url (several with commas between them; empty means DefaultURL).
func Connect(url string, opts ...Option) (*Client, error) {
	o := options{tenant: "default", nats: []nats.Option{nats.Name("paddock client"), nats.MaxReconnects(-1), nats.ReconnectWait(200 * time.Millisecond), nats.IgnoreAuthErrorAbort(), nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(2),
		nats.Timeout(greetWithin), nats.Dialer(&net.Dialer{Timeout: nats.DefaultTimeout})}}
	for _, set := range opts {
		set(&o)
	}
	if err := jobs.ValidTenant(o.tenant); err != nil {
		return nil, err
	}
	if url == "" {
		url = DefaultURL
	}
	shown, err := jobs.Servers(url)
	if err != nil {
		return nil, err
	}
	// Answers come to the tenant's own inbox: on servers that know who asks it may listen on no other.
	o.nats = append(o.nats, nats.CustomInboxPrefix("_INBOX_"+o.tenant))
	if o.creds != "" {
		creds, err := credentials(o.creds)
		if err != nil {
			return nil, err
		}
		o.nats = append(o.nats, creds)
	}
	nc, err := nats.Connect(url, o.nats...)
	if err != nil {
		return nil, fmt.Errorf("reach NATS at %s: %w; is `paddock up` running?", shown, err)
	}
	return &Client{nc: nc, tenant: o.tenant}, nil
}

// New gives a tenant's client on a connection that is there already, where answers may come to the inbox of whose it is: an operator, who may
// act for every tenant. Several may share it; who made it closes it.
func New(nc *nats.Conn, tenant string) (*Client, error) {
	if err := jobs.ValidTenant(tenant); err != nil {
		return nil, err
	}
	return &Client{nc: nc, tenant: tenant}, nil
}

// at is the server, to be shown.
func (c *Client) at() string {
	shown, _ := jobs.Servers(c.nc.ConnectedUrl()) // it was read when it was connected to
	return shown
}

// Close disconnects.
func (c *Client) Close() { c.nc.Close() }

// askWithin bounds a request, whatever the caller's ctx allows: an answer that is lost on its way never comes. Then it is "unavailable", as
// it is where the connection was lost before the answer: what was asked may have been done.
const askWithin = 30 * time.Second

// ask is one request and its answer.
func ask[R any](ctx context.Context, c *Client, subject string, body any) (R, error) {
	return askFor[R](ctx, c, askWithin, subject, body)
}

func askFor[R any](ctx context.Context, c *Client, within time.Duration, subject string, body any) (r R, err error) {
	answer, err := c.askRaw(ctx, within, subject, body)
	if err == nil && json.Unmarshal(answer, &r) != nil {
		err = strange(subject)
	}
	return r, err
}

// askRaw is askFor with the answer as it came.
func (c *Client) askRaw(ctx context.Context, within time.Duration, subject string, body any) (answer []byte, err error) {
	var data []byte
	if body != nil {
		if data, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	m, err := c.request(ctx, within, &nats.Msg{Subject: subject, Data: data})
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		return nil, &jobs.Error{Code: jobs.CodeTooLarge, Message: fmt.Sprintf("%d bytes are more than the server takes; large files go in as objects", len(data))}
	case err != nil:
		return nil, err
	}
	return m.Data, nil
}

// request asks once. It ends with the connection as it is now: an answer to what was asked before a reconnect never comes.
func (c *Client) request(ctx context.Context, within time.Duration, m *nats.Msg) (*nats.Msg, error) {
	asking, stop := context.WithTimeoutCause(ctx, within, unanswered(errSilence, fmt.Sprintf("nobody has answered at %s within %v", c.at(), within)))
	defer stop()
	asking, lose := context.WithCancelCause(asking)
	defer lose(nil)
	status := c.nc.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer c.nc.RemoveStatusListener(status)
	go func() { // ends with asking
		select {
		case s := <-status:
			lose(c.lost(s))
		case <-asking.Done():
		}
	}()
	answer, err := c.nc.RequestMsgWithContext(asking, m)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return nil, unanswered(errNobody, "no dispatcher answers at "+c.at()+"; is `paddock up` running there?")
	case errors.Is(err, nats.ErrReconnectBufExceeded):
		return nil, unanswered(errLost, "the connection is lost, and too much waits for the next")
	case err != nil && asking.Err() != nil && ctx.Err() == nil:
		return nil, context.Cause(asking)
	case err != nil:
		return nil, fmt.Errorf("ask %s: %w", strings.TrimPrefix(m.Subject, "paddock."), err)
	}
	return answer, nil
}

func (c *Client) lost(s nats.Status) error {
	if s == nats.CLOSED {
		return nats.ErrConnectionClosed
	}
	return unanswered(errLost, "the connection was lost before an answer came: what was asked may have been done")
}

// Why there was no answer.
var (
	errNobody  = errors.New("nobody listens") // what was asked has not been done
	errLost    = errors.New("the connection was lost")
	errSilence = errors.New("the time is over")
)

// unansweredError is "unavailable" to callers, and why to the client itself.
type unansweredError struct {
	is  *jobs.Error
	why error
}

func unanswered(why error, message string) error {
	return &unansweredError{&jobs.Error{Code: jobs.CodeUnavailable, Message: message, RetryAfterMS: 1000}, why}
}

func (u *unansweredError) Error() string   { return u.is.Error() }
func (u *unansweredError) Unwrap() []error { return []error{u.is, u.why} }

// unheard gives the error of a request about a running job, on which its worker alone listens: message, where nobody did.
func unheard(err error, message string) error {
	if errors.Is(err, errNobody) {
		return unanswered(errNobody, message)
	}
	return err
}

// strange is an answer that no dispatcher gives: whoever else listens on the subject.
func strange(subject string) error {
	return &jobs.Error{Code: jobs.CodeInternal, Message: "the answer on " + subject + " is not a dispatcher's"}
}

// Submit has a job accepted. The reply's Job is set where the error is nil.
func (c *Client) Submit(ctx context.Context, spec *jobs.Spec) (jobs.SubmitReply, error) {
	r, err := ask[jobs.SubmitReply](ctx, c, jobs.SubmitSubject(c.tenant), spec)
	switch {
	case err != nil:
		return r, err
	case r.Error != nil:
		return r, r.Error
	case r.Job == nil:
		return r, strange(jobs.SubmitSubject(c.tenant))
	}
	return r, nil
}

// Get gives a job's record, with its spec and, where it has ended, its result.
func (c *Client) Get(ctx context.Context, id string) (jobs.Job, error) {
	r, err := ask[jobs.GetReply](ctx, c, jobs.GetSubject(c.tenant), jobs.GetRequest{ID: id})
	switch {
	case err != nil:
		return jobs.Job{}, err
	case r.Error != nil:
		return jobs.Job{}, r.Error
	case r.Job == nil:
		return jobs.Job{}, strange(jobs.GetSubject(c.tenant))
	}
	return *r.Job, nil
}

// List gives jobs without their specs, newest first.
func (c *Client) List(ctx context.Context, q jobs.ListRequest) (jobs.ListReply, error) {
	r, err := ask[jobs.ListReply](ctx, c, jobs.ListSubject(c.tenant), q)
	if err == nil && r.Error != nil {
		err = r.Error
	}
	return r, err
}

// named keeps what is no job's id out of subjects.
func named(id string) error {
	if _, err := jobs.ParseID(id); err != nil {
		return &jobs.Error{Code: jobs.CodeNotFound, Message: fmt.Sprintf("no job %.80q", id)}
	}
	return nil
}

// Cancel asks for a job's end and gives where it stood.
func (c *Client) Cancel(ctx context.Context, id string) (jobs.State, error) {
	if err := named(id); err != nil {
		return "", err
	}
	r, err := ask[jobs.CancelReply](ctx, c, jobs.CancelSubject(c.tenant, id), nil)
	switch {
	case err != nil:
		return "", err
	case r.Error != nil:
		return "", r.Error
	case r.State == "":
		return "", strange(jobs.CancelSubject(c.tenant, id))
	}
	return r.State, nil
}
