package access

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/nkeys"
)

// CalloutKeys is a directory with what a dispatcher needs to decide who connects to NATS servers of somebody else's: the seeds of four keys,
// each in a file of its own.
type CalloutKeys string

// Issuer signs who is let in, and Exchange reads what servers ask, which is encrypted.
func (d CalloutKeys) Issuer() (nkeys.KeyPair, error)   { return seed(d.file("issuer.nk")) }
func (d CalloutKeys) Exchange() (nkeys.KeyPair, error) { return seed(d.file("exchange.nk")) }

// Callout and Dispatcher name the seeds of the users that the servers know themselves: who decides, and who works.
func (d CalloutKeys) Callout() string    { return d.file("callout.nk") }
func (d CalloutKeys) Dispatcher() string { return d.file("dispatcher.nk") }

// Config names the part of a server's configuration that has the public halves.
func (d CalloutKeys) Config() string { return d.file("auth.conf") }

func (d CalloutKeys) file(name string) string { return filepath.Join(string(d), name) }

func seed(name string) (nkeys.KeyPair, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("callout: %w", err)
	}
	k, err := nkeys.FromSeed([]byte(strings.TrimSpace(string(b))))
	if err != nil {
		return nil, fmt.Errorf("callout: %s: %w", name, err)
	}
	return k, nil
}

// Account is where Paddock's clients are on servers of somebody else's.
const Account = "PADDOCK"

const calloutConfig = `# Who may connect, for all servers of the cluster alike: include it in each one's configuration. Paddock's dispatcher answers what these
# servers ask of it; the two users that they know themselves are its own. Made by paddock credential callout; the seeds are beside it, and
# belong on the dispatchers' hosts only.
accounts {
  PADDOCK {
    jetstream: enabled
    users: [ { nkey: %[1]s } ]
  }
  SYS {
    users: [ {
      nkey: %[2]s
      permissions {
        subscribe: [ "$SYS.REQ.USER.AUTH", "_INBOX.>" ]
        publish: { allow: [ "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.*.KICK" ] }
        allow_responses: { max: 1, expires: "1m" }
      }
    } ]
  }
}
system_account: SYS
authorization {
  timeout: 10
  auth_callout {
    issuer: %[3]s
    xkey: %[4]s
    account: SYS
    auth_users: [ %[1]s, %[2]s ]
  }
}
`

// MakeCalloutKeys makes the directory, which must not hold such keys yet, and the part of a server's configuration in it.
func MakeCalloutKeys(dir string) (CalloutKeys, error) {
	d := CalloutKeys(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("callout: %w", err)
	}
	var public []any
	for _, k := range []struct {
		file string
		make func() (nkeys.KeyPair, error)
	}{
		{d.Dispatcher(), nkeys.CreateUser}, {d.Callout(), nkeys.CreateUser}, {d.file("issuer.nk"), nkeys.CreateAccount}, {d.file("exchange.nk"), nkeys.CreateCurveKeys},
	} {
		pair, err := k.make()
		if err != nil {
			return "", fmt.Errorf("callout: %w", err)
		}
		p, err := pair.PublicKey()
		if err != nil {
			return "", fmt.Errorf("callout: %w", err)
		}
		if err := WriteSeed(k.file, pair); err != nil {
			return "", fmt.Errorf("callout: %w", err)
		}
		public = append(public, p)
	}
	if err := os.WriteFile(d.Config(), fmt.Appendf(nil, calloutConfig, public...), 0o644); err != nil {
		return "", fmt.Errorf("callout: %w", err)
	}
	return d, nil
}

// WriteSeed writes a key's seed into a new file, for its owner alone. It overwrites nothing.
func WriteSeed(name string, k nkeys.KeyPair) error {
	s, err := k.Seed()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(s, '\n')); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}
