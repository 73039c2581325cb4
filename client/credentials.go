package client

import (
	"fmt"
	"os"
	"strings"

	"github.com/nats-io/nats.go"
)

// credentials reads a file of Credentials.
func credentials(name string) (nats.Option, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if strings.Contains(string(b), "BEGIN NATS USER JWT") {
		return nats.UserCredentials(name), nil
	}
	o, err := nats.NkeyOptionFromSeed(name)
	if err != nil {
		return nil, fmt.Errorf("credentials: %s: %w", name, err)
	}
	return o, nil
}
