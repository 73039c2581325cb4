package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/paddockvm/paddock/bus/access"
	"github.com/paddockvm/paddock/jobs"
)

// CalloutConfig says for which servers of somebody else's a dispatcher decides who connects.
type CalloutConfig struct {
	URL         string
	TLS         TLS
	Keys        access.CalloutKeys
	Credentials *access.File
	Log         zerolog.Logger
}

// Callout answers the auth callouts of NATS servers (ADR-26 of NATS).
type Callout struct {
	nc       *nats.Conn
	issuer   nkeys.KeyPair
	exchange nkeys.KeyPair
	file     *access.File
	log      zerolog.Logger
}

const (
	authSubject = "$SYS.REQ.USER.AUTH"
	// xkeyHeader holds the server's half of the encryption.
	xkeyHeader = "Nats-Server-Xkey"
	// authAudience is what a request is for.
	authAudience = "nats-authorization-request"
	// maxDeciding bounds how many decide at once: a password costs 50 ms of a processor.
	maxDeciding = 64
	// serversAnswerWithin is how long the servers of a cluster are waited for that are asked for their connections.
	serversAnswerWithin = 2 * time.Second
)

// ConnectCallout connects to the servers, as the user that they know. ctx bounds it.
func ConnectCallout(ctx context.Context, c CalloutConfig) (_ *Callout, err error) {
	a := &Callout{file: c.Credentials, log: c.Log}
	if a.issuer, err = c.Keys.Issuer(); err != nil {
		return nil, err
	}
	if a.exchange, err = c.Keys.Exchange(); err != nil {
		return nil, err
	}
	at, err := jobs.Servers(c.URL)
	if err != nil {
		return nil, fmt.Errorf("callout: %w", err)
	}
	opts, err := new(Bus).identify(Config{URL: c.URL, TLS: c.TLS, Creds: c.Keys.Callout()})
	if err != nil {
		return nil, fmt.Errorf("callout: %w", err)
	}
	first := &firstDial{ctx: ctx}
	opts = append(opts, nats.Name("paddock callout"), nats.PingInterval(pingEvery), nats.MaxPingsOutstanding(pingsLost), nats.MaxReconnects(-1), nats.ReconnectWait(200*time.Millisecond), nats.SetCustomDialer(first), nats.Timeout(greetWithin),
		nats.IgnoreAuthErrorAbort(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				c.Log.Warn().Err(err).Msg("nats: callout: disconnected")
			}
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { c.Log.Error().Err(err).Msg("nats: callout") }))
	if a.nc, err = nats.Connect(c.URL, opts...); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("callout: connect to NATS at %s: %w", at, err)
	}
	first.over.Store(true)
	return a, nil
}

// Run decides until ctx ends, and then disconnects. It calls ready when the servers ask it. Several may run, of several dispatchers; each
// has the same credentials, or clients are let in by chance.
func (a *Callout) Run(ctx context.Context, ready func()) error {
	defer a.nc.Close()
	requests := make(chan *nats.Msg, 1024)
	sub, err := a.nc.ChanQueueSubscribe(authSubject, queueGroup, requests)
	if err != nil {
		return fmt.Errorf("callout: %w", err)
	}
	defer sub.Unsubscribe() //nolint:errcheck // the connection's end does it too
	if err := a.nc.FlushTimeout(answerWithin); err != nil {
		return fmt.Errorf("callout: %w", err)
	}
	ready()
	var deciding errgroup.Group
	deciding.SetLimit(maxDeciding)
	defer deciding.Wait() //nolint:errcheck // they give none
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		a.disconnect(ctx, nil) // whose credentials went while nobody decided
		a.file.Watch(ctx, func(gone map[string]bool, err error) {
			if err != nil {
				a.log.Error().Err(err).Msg("nats: the credentials cannot be read; those of before stay in force")
				return
			}
			a.log.Info().Int("gone", len(gone)).Msg("nats: the credentials have changed")
			if len(gone) > 0 {
				a.disconnect(ctx, gone)
			}
		})
	}()
	defer func() { <-watching }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-requests:
			deciding.Go(func() error {
				a.answer(m)
				return nil
			})
		}
	}
}

// answer decides on one client. What is no request of a server gets no answer.
func (a *Callout) answer(m *nats.Msg) {
	server := m.Header.Get(xkeyHeader)
	token, err := a.exchange.Open(m.Data, server)
	if err != nil {
		a.log.Warn().Err(err).Msg("nats: callout: a request that no server has encrypted; is xkey in its configuration?")
		return
	}
	q, err := jwt.DecodeAuthorizationRequestClaims(string(token))
	if err != nil || q.Audience != authAudience || !nkeys.IsValidPublicUserKey(q.UserNkey) || !nkeys.IsValidPublicServerKey(q.Issuer) || q.Issuer != q.Server.ID {
		a.log.Warn().Err(err).Msg("nats: callout: a request that is none")
		return
	}
	r := jwt.NewAuthorizationResponseClaims(q.UserNkey)
	r.Audience = q.Server.ID
	user, who, err := a.decide(q)
	if err == nil {
		r.Jwt, err = user.Encode(a.issuer)
	}
	if err != nil {
		r.Error = access.ErrDenied.Error() // why is nobody's business
		a.log.Warn().Err(err).Str("from", q.ClientInformation.Host).Str("client", q.ConnectOptions.Name).Msg("nats: a client was not let in")
	} else {
		a.log.Debug().Str("from", q.ClientInformation.Host).Str("client", q.ConnectOptions.Name).Stringer("as", who).Msg("nats: a client was let in")
	}
	answer, err := r.Encode(a.issuer)
	if err != nil {
		a.log.Error().Err(err).Msg("nats: callout: sign")
		return
	}
	sealed, err := a.exchange.Seal([]byte(answer), server)
	if err != nil {
		a.log.Error().Err(err).Msg("nats: callout: encrypt")
		return
	}
	_ = m.Respond(sealed) // the client tries again
}

// letIn begins the names under which servers list those who were let in by a callout: users that the servers know themselves have others.
const letIn = "paddock:"

// errNotClient is for leaf nodes and such: they carry others' messages, and no role is meant for that.
var errNotClient = errors.New("it is no client")

func (a *Callout) decide(q *jwt.AuthorizationRequestClaims) (*jwt.UserClaims, access.Identity, error) {
	o := q.ConnectOptions
	one, err := a.file.Credentials().Authenticate(access.Login{
		NKey: o.Nkey, Signature: o.SignedNonce, Nonce: []byte(q.ClientInformation.Nonce), User: o.Username, Password: o.Password,
	}, time.Now())
	if err == nil && q.ClientInformation.Kind != "Client" {
		err = errNotClient
	}
	if err != nil {
		return nil, one.Identity, err
	}
	u := jwt.NewUserClaims(q.UserNkey)
	u.Name, u.Audience = letIn+one.ID(), access.Account
	if !one.Expires.IsZero() {
		u.Expires = one.Expires.Unix()
	}
	p := access.Of(one.Identity)
	u.Permissions = jwt.Permissions{
		Pub: jwt.Permission{Allow: p.Publish.Allow, Deny: p.Publish.Deny}, Sub: jwt.Permission{Allow: p.Subscribe.Allow, Deny: p.Subscribe.Deny},
	}
	if p.Answers > 0 {
		u.Resp = &jwt.ResponsePermission{MaxMsgs: 1, Expires: p.Answers}
	}
	return u, one.Identity, nil
}

// disconnect ends the connections whose credentials are not in force any more, on whichever servers they are: those that have changed, and what
// the file does not have. All are asked for at once, however many have changed, because each question takes serversAnswerWithin.
func (a *Callout) disconnect(ctx context.Context, changed map[string]bool) {
	ctx, cancel := context.WithTimeout(ctx, serversAnswerWithin)
	defer cancel()
	inbox := a.nc.NewRespInbox()
	answers, err := a.nc.SubscribeSync(inbox)
	if err != nil {
		a.log.Error().Err(err).Msg("nats: callout: end connections")
		return
	}
	defer answers.Unsubscribe() //nolint:errcheck // the connection's end does it too
	q, err := json.Marshal(map[string]any{"auth": true, "acc": access.Account, "limit": 1 << 16})
	if err == nil {
		err = a.nc.PublishRequest("$SYS.REQ.SERVER.PING.CONNZ", inbox, q)
	}
	if err != nil {
		a.log.Error().Err(err).Msg("nats: callout: end connections")
		return
	}
	for { // nobody knows how many servers there are
		m, err := answers.NextMsgWithContext(ctx)
		if err != nil {
			return
		}
		var r struct {
			Server struct{ ID string }
			Data   struct{ Connections []connection }
		}
		if err := json.Unmarshal(m.Data, &r); err != nil {
			a.log.Error().Err(err).Msg("nats: callout: a server's connections")
			continue
		}
		now := a.file.Credentials()
		for _, c := range r.Data.Connections {
			id, ours := strings.CutPrefix(c.User, letIn)
			if c.Kind != "Client" || !changed[id] && (!ours || now.Has(id)) {
				continue
			}
			// Without a reply subject servers do nothing; nobody listens on this one.
			if err := a.nc.PublishRequest("$SYS.REQ.SERVER."+r.Server.ID+".KICK", a.nc.NewRespInbox(), fmt.Appendf(nil, `{"cid":%d}`, c.CID)); err != nil {
				a.log.Error().Err(err).Msg("nats: callout: end a connection")
				continue
			}
			a.log.Info().Str("credential", id).Str("server", r.Server.ID).Msg("nats: a connection ends with its credential")
		}
	}
}

// connection is what is read here of a server's ConnInfo. One that an older dispatcher has let in has the credential's bare id for a user.
type connection struct {
	CID  uint64 `json:"cid"`
	Kind string `json:"kind"`
	User string `json:"authorized_user"`
}
