package bus

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/nats-io/nats.go"
)

// TLS are files in PEM. Certificates and keys are read again for every connection, so that new ones need no restart; the CA is not.
type TLS struct {
	// Cert and Key are one's own: a server's, or what a client shows where the server asks for it.
	Cert, Key string
	// CA has signed the other's; empty is the system's for clients, and for servers that they do not ask.
	CA string
}

// tlsWithin bounds a handshake, and greetWithin all that a server and a client say to each other until the client is let in, by both of them:
// their default of 2 s is short on a loaded machine.
const (
	tlsWithin   = 10 * time.Second
	greetWithin = tlsWithin + time.Second
)

// Server gives a server's configuration; nil is no TLS.
func (t TLS) Server() (*tls.Config, error) {
	if t == (TLS{}) {
		return nil, nil
	}
	if t.Cert == "" || t.Key == "" {
		return nil, errors.New("a server with TLS needs a certificate and its key")
	}
	if _, err := tls.LoadX509KeyPair(t.Cert, t.Key); err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", t.Cert, t.Key, err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return t.pair() }}
	if t.CA == "" {
		return c, nil
	}
	pool, err := t.pool()
	c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool
	return c, err
}

func (t TLS) pair() (*tls.Certificate, error) {
	c, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	return &c, err
}

func (t TLS) pool() (*x509.CertPool, error) {
	b, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, err
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", t.CA)
	}
	return p, nil
}

// client gives a client's option.
func (t TLS) client() (nats.Option, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if (t.Cert == "") != (t.Key == "") {
		return nil, errors.New("a certificate and its key come together")
	}
	if t.Cert != "" {
		if _, err := t.pair(); err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", t.Cert, t.Key, err)
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return t.pair() }
	}
	if t.CA != "" {
		pool, err := t.pool()
		if err != nil {
			return nil, err
		}
		c.RootCAs = pool
	}
	return nats.Secure(c), nil
}
