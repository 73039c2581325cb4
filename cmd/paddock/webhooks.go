package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/paddockvm/paddock/dispatcher"
	"github.com/paddockvm/paddock/dispatcher/webhook"
	"github.com/paddockvm/paddock/jobs"
)

// webhookConfig is what a dispatcher can be told of where webhooks may go. It is a part of config.
type webhookConfig struct {
	WebhookAllow []string `koanf:"webhook_allow"`
	WebhookHTTP  bool     `koanf:"webhook_http"`
	WebhookPorts []int    `koanf:"webhook_ports"`
}

func addWebhookFlags(f *pflag.FlagSet) {
	f.StringSlice("webhook-allow", nil, "private ranges that webhooks may be sent to, like 10.1.0.0/16: any tenant's")
	f.Bool("webhook-http", false, "send webhooks by http too, not only by https")
	f.IntSlice("webhook-ports", nil, "ports that webhooks may be sent to (443 and 8443, and 80 with --webhook-http)")
}

// openWebhooks gives the service that calls webhooks, on a ledger.
func openWebhooks(c webhookConfig, store webhook.Store, keep time.Duration, r prometheus.Registerer) (*webhook.Service, error) {
	g := webhook.Guard{HTTP: c.WebhookHTTP}
	for _, text := range c.WebhookAllow {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("webhook_allow: %q: want a range like 10.1.0.0/16", text)
		}
		g.Allow = append(g.Allow, p.Masked())
	}
	for _, n := range c.WebhookPorts {
		if n < 1 || n > 65535 {
			return nil, fmt.Errorf("webhook_ports: %d: want 1 to 65535", n)
		}
		g.Ports = append(g.Ports, uint16(n))
	}
	return webhook.New(webhook.Config{Store: store, Guard: g, Keep: keep, Registerer: r})
}

// brain is the dispatcher, with what calls webhooks of the same ledger.
type brain struct {
	*dispatcher.Dispatcher
	hooks *webhook.Service
}

// Webhook implements bus.Webhooks.
func (b *brain) Webhook(ctx context.Context, tenant, op string, body []byte) (jobs.WebhookReply, error) {
	return b.hooks.Webhook(ctx, tenant, op, body)
}
