package asynqin

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"

	"github.com/redis/go-redis/v9"
)

// Access is what a URL does not say of how Redis is reached, or should not.
type Access struct {
	// Password, where not empty, is the user's.
	Password string
	// TLS has the authorities, and the certificate to show, for rediss:// URLs; nil for the system's and none.
	TLS *tls.Config
}

// Open gives a client for a URL as go-redis reads them: redis://, rediss:// for TLS, unix:// for a socket. One with master_name= is of
// Sentinels, one with addr= of a cluster, whose further addresses those are; every other one is a server. It connects to nothing yet.
func Open(text string, a Access) (redis.UniversalClient, error) {
	u, err := url.Parse(text)
	if err != nil {
		return nil, errors.New("redis: the URL cannot be read") // the error repeats it, password and all
	}
	switch q := u.Query(); {
	case q.Get("master_name") != "":
		o, err := redis.ParseFailoverURL(text)
		if err != nil {
			return nil, fmt.Errorf("sentinel: %w", err)
		}
		if a.Password != "" {
			o.Password = a.Password
		}
		o.TLSConfig = a.merge(o.TLSConfig)
		return redis.NewFailoverClient(o), nil
	case q.Has("addr"):
		o, err := redis.ParseClusterURL(text)
		if err != nil {
			return nil, fmt.Errorf("cluster: %w", err)
		}
		if a.Password != "" {
			o.Password = a.Password
		}
		o.TLSConfig = a.merge(o.TLSConfig)
		return redis.NewClusterClient(o), nil
	}
	o, err := redis.ParseURL(text)
	if err != nil {
		return nil, err
	}
	if a.Password != "" {
		o.Password = a.Password
	}
	o.TLSConfig = a.merge(o.TLSConfig)
	return redis.NewClient(o), nil
}

// merge adds to what the URL says of TLS; nil stays nil.
func (a Access) merge(c *tls.Config) *tls.Config {
	if c != nil && a.TLS != nil {
		c.RootCAs, c.Certificates = a.TLS.RootCAs, a.TLS.Certificates
	}
	return c
}
