package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"github.com/paddockvm/paddock/dispatcher/asynqin"
)

// redisConfig is what a dispatcher can be told of a Redis to take asynq's tasks from. It is a part of config.
type redisConfig struct {
	Redis             string        `koanf:"redis"`
	RedisPasswordFile string        `koanf:"redis_password_file"`
	RedisCA           string        `koanf:"redis_ca"`
	RedisCert         string        `koanf:"redis_cert"`
	RedisKey          string        `koanf:"redis_key"`
	RedisTenant       string        `koanf:"redis_tenant"`
	RedisTenants      []string      `koanf:"redis_tenants"`
	RedisConcurrency  int           `koanf:"redis_concurrency"`
	RedisKeepResult   time.Duration `koanf:"redis_keep_result"`
}

func addRedisFlags(f *pflag.FlagSet) {
	f.String("redis", "", "Redis to take asynq's tasks from, as a URL: redis:// or rediss://, with addr= of a cluster, with master_name= of Sentinels; empty for none")
	f.String("redis-password-file", "", "file that holds the password, which --print-config would show in the URL")
	f.String("redis-ca", "", "certificates of the authorities for rediss:// (the system's)")
	f.String("redis-cert", "", "certificate to show to Redis")
	f.String("redis-key", "", "its key")
	f.String("redis-tenant", "default", "whose the tasks are on paddock:critical, paddock:default and paddock:low; empty takes none from there")
	f.StringSlice("redis-tenants", nil, "further queues and whose tasks theirs are, as PREFIX=TENANT: from PREFIX:critical, PREFIX:default and PREFIX:low")
	f.Int("redis-concurrency", 1000, "tasks of one prefix that are active at once")
	f.Duration("redis-keep-result", time.Hour, "how long a result stays in Redis beside its task")
}

// serveRedis takes tasks from Redis until ctx ends, where the configuration names one.
func serveRedis(ctx context.Context, c redisConfig, d asynqin.Brain, r prometheus.Registerer) error {
	if c.Redis == "" {
		return nil
	}
	tenants, err := c.tenants()
	if err != nil {
		return err
	}
	client, err := c.open()
	if err != nil {
		return err
	}
	defer client.Close()                            //nolint:errcheck // the bridge has ended
	redis.SetLogger(redisLogger{*zerolog.Ctx(ctx)}) // else it writes to standard error, each time that it cannot connect
	return asynqin.Run(ctx, asynqin.Config{
		Redis: client, Brain: d, Tenants: tenants, Concurrency: c.RedisConcurrency, KeepResult: c.RedisKeepResult, Registerer: r,
	})
}

// redisLogger takes what the library says of connections: who uses them hears of it too.
type redisLogger struct{ zerolog.Logger }

// Printf implements what redis.SetLogger takes.
func (l redisLogger) Printf(_ context.Context, format string, v ...any) { l.Debug().Msgf(format, v...) }

// tenants are the configured ones by the prefix of their queues.
func (c redisConfig) tenants() (map[string]string, error) {
	m := map[string]string{}
	if c.RedisTenant != "" {
		m["paddock"] = c.RedisTenant
	}
	for _, pair := range c.RedisTenants {
		prefix, tenant, ok := strings.Cut(pair, "=")
		if _, twice := m[prefix]; !ok || twice {
			return nil, fmt.Errorf("redis_tenants: %q: want PREFIX=TENANT, each prefix once", pair)
		}
		m[prefix] = tenant
	}
	if len(m) == 0 {
		return nil, errors.New("redis: neither redis_tenant nor redis_tenants says whose tasks there are")
	}
	return m, asynqin.CheckTenants(m)
}

func (c redisConfig) open() (redis.UniversalClient, error) {
	access := asynqin.Access{TLS: &tls.Config{MinVersion: tls.VersionTLS12}}
	if c.RedisPasswordFile != "" {
		b, err := os.ReadFile(c.RedisPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("redis_password_file: %w", err)
		}
		access.Password = strings.TrimRight(string(b), "\r\n")
	}
	if c.RedisCA != "" {
		b, err := os.ReadFile(c.RedisCA)
		if err != nil {
			return nil, fmt.Errorf("redis_ca: %w", err)
		}
		access.TLS.RootCAs = x509.NewCertPool()
		if !access.TLS.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("redis_ca: no certificate in %s", c.RedisCA)
		}
	}
	if c.RedisCert != "" || c.RedisKey != "" {
		pair, err := tls.LoadX509KeyPair(c.RedisCert, c.RedisKey)
		if err != nil {
			return nil, fmt.Errorf("redis_cert, redis_key: %w", err)
		}
		access.TLS.Certificates = []tls.Certificate{pair}
	}
	return asynqin.Open(c.Redis, access)
}
