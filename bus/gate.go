package bus

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"github.com/paddockvm/paddock/bus/access"
)

// gate lets clients into the embedded server, as the file of credentials says.
type gate struct {
	file *access.File
	log  zerolog.Logger
	own  nkeys.KeyPair // this process's, which is in no file
	self string        // its public half

	stop     context.CancelFunc
	watching sync.WaitGroup
}

var _ server.Authentication = (*gate)(nil)

func newGate(file *access.File, log zerolog.Logger) (*gate, error) {
	own, err := nkeys.CreateUser()
	if err != nil {
		return nil, err
	}
	self, err := own.PublicKey()
	return &gate{file: file, log: log, own: own, self: self, stop: func() {}}, err
}

// option lets this process's own connections in.
func (g *gate) option() nats.Option { return nats.Nkey(g.self, g.own.Sign) }

// Check implements server.Authentication.
func (g *gate) Check(c server.ClientAuthentication) bool {
	o := c.GetOpts()
	login := access.Login{NKey: o.Nkey, Signature: o.Sig, Nonce: c.GetNonce(), User: o.Username, Password: o.Password}
	from := "this process"
	if a := c.RemoteAddress(); a != nil {
		from = a.String()
	}
	if login.NKey == g.self {
		own, err := access.New([]access.Credential{{NKey: g.self, Identity: access.Identity{Role: access.Operator, Name: "paddock"}}})
		if err == nil {
			_, err = own.Authenticate(login, time.Now())
		}
		return err == nil // it may do everything
	}
	one, err := g.file.Credentials().Authenticate(login, time.Now())
	if err != nil || c.Kind() != server.CLIENT {
		g.log.Warn().Err(err).Str("from", from).Str("client", o.Name).Msg("nats: a client was not let in")
		return false
	}
	c.RegisterUser(&server.User{Username: one.User, Permissions: serverPermissions(access.Of(one.Identity)), ConnectionDeadline: one.Expires})
	g.log.Debug().Str("from", from).Str("client", o.Name).Stringer("as", one.Identity).Msg("nats: a client was let in")
	return true
}

func serverPermissions(p access.Permissions) *server.Permissions {
	sp := &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: p.Publish.Allow, Deny: p.Publish.Deny},
		Subscribe: &server.SubjectPermission{Allow: p.Subscribe.Allow, Deny: p.Subscribe.Deny},
	}
	if p.Answers > 0 {
		sp.Response = &server.ResponsePermission{MaxMsgs: 1, Expires: p.Answers}
	}
	return sp
}

// watch ends the connections of credentials that go, until close.
func (g *gate) watch(s *server.Server) {
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	g.watching.Go(func() {
		g.file.Watch(ctx, func(gone map[string]bool, err error) {
			if err != nil {
				g.log.Error().Err(err).Msg("nats: the credentials cannot be read; those of before stay in force")
				return
			}
			g.log.Info().Int("gone", len(gone)).Msg("nats: the credentials have changed")
			if len(gone) > 0 {
				g.disconnect(s, gone)
			}
		})
	})
}

func (g *gate) close() {
	g.stop()
	g.watching.Wait()
}

// connzPage is how many connections are looked at at once.
const connzPage = 1000

func (g *gate) disconnect(s *server.Server, gone map[string]bool) {
	var theirs []*server.ConnInfo
	for offset := 0; ; offset += connzPage {
		page, err := s.Connz(&server.ConnzOptions{Username: true, Sort: server.ByCid, Offset: offset, Limit: connzPage})
		if err != nil {
			g.log.Error().Err(err).Msg("nats: list connections")
			break
		}
		for _, c := range page.Conns {
			if gone[c.AuthorizedUser] {
				theirs = append(theirs, c)
			}
		}
		if len(page.Conns) < connzPage {
			break
		}
	}
	for _, c := range theirs {
		_ = s.DisconnectClientByID(c.Cid) // it may have gone by itself
		g.log.Info().Str("client", c.Name).Str("credential", c.AuthorizedUser).Msg("nats: a connection ends with its credential")
	}
}
