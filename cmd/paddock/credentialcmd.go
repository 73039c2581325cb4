package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nkeys"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/bcrypt"

	"github.com/paddockvm/paddock/bus/access"
)

// defaultCredentialsFile is where `paddock credential` looks where it is not told.
const defaultCredentialsFile = "/etc/paddock/credentials.yaml"

func credentialCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "credential", Short: "Say who may connect to Paddock's NATS servers",
		Long: "Changes the file of --nats-credentials. Servers that use it notice within seconds: new credentials let in, and the connections of those\n" +
			"that are gone end. The file holds public keys and hashes of passwords; the seed of a key is printed once and kept nowhere.",
	}
	c.AddCommand(credentialAddCommand(), credentialLsCommand(), credentialRmCommand(), credentialUsersCommand(), credentialCalloutCommand())
	return c
}

func credentialsFlag(c *cobra.Command) *string {
	return c.Flags().String("nats-credentials", envOr("PADDOCK_NATS_CREDENTIALS", defaultCredentialsFile), "the file (PADDOCK_NATS_CREDENTIALS)")
}

func credentialAddCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "add", Short: "Let somebody in, and print the seed of their key", Args: arguments(0, 0),
		Example: "  paddock credential add --tenant acme --expires 720h > acme.nk\n  paddock credential add --worker w1 > w1.nk\n  paddock credential add --role monitor --name grafana --user grafana",
	}
	file := credentialsFlag(c)
	tenant := c.Flags().String("tenant", "", "a tenant, who submits jobs and sees its own")
	worker := c.Flags().String("worker", "", "a worker, by its name in the fleet")
	role := addChoice(c, "role", "", "", "somebody else, with --name", string(access.Operator), string(access.Monitor))
	name := c.Flags().String("name", "", "name of an operator, who may do everything, or of a monitor, who sees everything")
	expires := c.Flags().Duration("expires", 0, "for how long it lets in; 0 is for ever")
	user := c.Flags().String("user", "", "a user's name, for clients that know no keys: a password is printed instead of a seed")
	c.RunE = func(c *cobra.Command, _ []string) error {
		who, err := identityOf(*tenant, *worker, access.Role(*role), *name)
		if err != nil {
			return err
		}
		one, secret, err := newCredential(who, *user)
		if err != nil {
			return err
		}
		switch {
		case *expires < 0:
			return errors.New("--expires has to be in the future")
		case *expires > 0:
			one.Expires = time.Now().Add(*expires).UTC().Truncate(time.Second)
		}
		if err := access.Change(*file, func(l []access.Credential) ([]access.Credential, error) { return append(l, one), nil }); err != nil {
			return err
		}
		say("%s is let in by %s with %s, %s", *file, one.Identity, one.ID(), lasting(one.Expires))
		_, err = fmt.Fprintln(c.OutOrStdout(), secret)
		return err
	}
	return c
}

// identityOf gives the one identity that flags name.
func identityOf(tenant, worker string, role access.Role, name string) (access.Identity, error) {
	var all []access.Identity
	for r, n := range map[access.Role]string{access.Tenant: tenant, access.Worker: worker, role: name} {
		if n != "" {
			all = append(all, access.Identity{Role: r, Name: n})
		}
	}
	if len(all) != 1 || (role == "") != (name == "") {
		return access.Identity{}, errors.New("say who: --tenant NAME, --worker NAME, or --role operator|monitor with --name NAME")
	}
	return all[0], all[0].Validate()
}

// newCredential makes a credential and the secret that its holder shows.
func newCredential(who access.Identity, user string) (access.Credential, string, error) {
	if user != "" {
		password := rand.Text()
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.DefaultCost)
		return access.Credential{User: user, Password: string(hash), Identity: who}, password, err
	}
	k, err := nkeys.CreateUser()
	if err != nil {
		return access.Credential{}, "", err
	}
	public, err := k.PublicKey()
	if err != nil {
		return access.Credential{}, "", err
	}
	seed, err := k.Seed()
	return access.Credential{NKey: public, Identity: who}, string(seed), err
}

func lasting(t time.Time) string {
	switch {
	case t.IsZero():
		return "for ever"
	case time.Now().After(t):
		return "expired " + t.Local().Format(time.DateTime)
	}
	return "until " + t.Local().Format(time.DateTime)
}

func credentialLsCommand() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List who is let in", Args: arguments(0, 0)}
	file := credentialsFlag(c)
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		all, err := access.Read(*file)
		if err != nil {
			return err
		}
		type row struct {
			Role    access.Role `json:"role"`
			Name    string      `json:"name"`
			ID      string      `json:"id"`
			Expires *time.Time  `json:"expires,omitempty" yaml:",omitempty"`
		}
		rows := []row{}
		for _, one := range all.List() {
			r := row{Role: one.Role, Name: one.Name, ID: one.ID()}
			if !one.Expires.IsZero() {
				r.Expires = &one.Expires
			}
			rows = append(rows, r)
		}
		return show(c.OutOrStdout(), *out, rows, func(to io.Writer) error {
			w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ROLE\tNAME\tKEY OR USER\tLETS IN")
			for _, one := range all.List() {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", one.Role, one.Name, one.ID(), lasting(one.Expires))
			}
			return w.Flush()
		})
	}
	return c
}

func credentialRmCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "rm KEY|USER|ROLE/NAME...", Short: "Let somebody in no more, and end their connections", Args: arguments(1, -1),
		Example: "  paddock credential rm tenant/acme",
	}
	file := credentialsFlag(c)
	c.RunE = func(_ *cobra.Command, args []string) error {
		return access.Change(*file, func(l []access.Credential) ([]access.Credential, error) {
			for _, arg := range args {
				is := func(one access.Credential) bool { return one.ID() == arg || string(one.Role)+"/"+one.Name == arg }
				if !slices.ContainsFunc(l, is) {
					return nil, fmt.Errorf("no credential %s in %s; `paddock credential ls` lists them", arg, *file)
				}
				l = slices.DeleteFunc(l, is)
			}
			return l, nil
		})
	}
	return c
}

func credentialUsersCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "users", Short: "Print who is let in as a NATS server's configuration has it", Args: arguments(0, 0),
		Long: "For servers that ask no dispatcher who may connect, as a leaf node's at a site with workers. Print it anew when the credentials change.",
	}
	file := credentialsFlag(c)
	roles := c.Flags().StringSlice("role", nil, "only these: tenant, worker, operator, monitor")
	c.RunE = func(c *cobra.Command, _ []string) error {
		all, err := access.Read(*file)
		if err != nil {
			return err
		}
		l := slices.DeleteFunc(all.List(), func(one access.Credential) bool { return len(*roles) > 0 && !slices.Contains(*roles, string(one.Role)) })
		_, err = io.WriteString(c.OutOrStdout(), access.ServerUsers(l, time.Now()))
		return err
	}
	return c
}

func credentialCalloutCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "callout DIR", Short: "Make the keys with which NATS servers of one's own ask the dispatcher who may connect", Args: arguments(1, 1),
		Long: "Makes DIR with the seeds, which belong on the dispatchers' hosts (--nats-callout), and with auth.conf, which the servers' configuration includes.",
	}
	c.RunE = func(_ *cobra.Command, args []string) error {
		keys, err := access.MakeCalloutKeys(args[0])
		if err != nil {
			return err
		}
		say("put %s beside each NATS server's configuration, and give the dispatchers --nats-callout %s", keys.Config(), strings.TrimSuffix(args[0], "/"))
		return nil
	}
	return c
}
