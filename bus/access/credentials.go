package access

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nkeys"
	"golang.org/x/crypto/bcrypt"
	"gopkg.in/yaml.v3"
)

// Credential lets somebody in: by the NKEY whose public half it holds, or by a user's name and the bcrypt hash of a password.
type Credential struct {
	NKey     string `yaml:"nkey,omitempty"`
	User     string `yaml:"user,omitempty"`
	Password string `yaml:"password,omitempty"`
	Identity `yaml:",inline"`
	// Expires is when it ends; the zero time is never.
	Expires time.Time `yaml:"expires,omitempty"`
}

// ID is what servers know a connection by that was let in with it.
func (c Credential) ID() string {
	if c.NKey != "" {
		return c.NKey
	}
	return c.User
}

func (c Credential) validate() error {
	if err := c.Identity.Validate(); err != nil {
		return err
	}
	switch {
	case (c.NKey == "") == (c.User == ""):
		return fmt.Errorf("%s: want either nkey or user", c.Identity)
	case c.NKey != "" && !nkeys.IsValidPublicUserKey(c.NKey):
		return fmt.Errorf("%s: nkey %.80q: want a user's public key, which begins with U", c.Identity, c.NKey)
	case c.User != "" && nkeys.IsValidPublicKey(c.User):
		return fmt.Errorf("%s: a public key is no name for a user", c.Identity)
	case c.User != "":
		if _, err := bcrypt.Cost([]byte(c.Password)); err != nil {
			return fmt.Errorf("%s: password of user %q: want a bcrypt hash, which begins with $2a$", c.Identity, c.User)
		}
	case c.Password != "":
		return fmt.Errorf("%s: an nkey has no password", c.Identity)
	}
	return nil
}

// Credentials are all that let in. They are not changed once they are made.
type Credentials struct {
	list []Credential
	byID map[string]Credential
}

// New checks credentials; all that is wrong with them is in the error.
func New(list []Credential) (*Credentials, error) {
	c := &Credentials{list: slices.Clone(list), byID: map[string]Credential{}}
	var errs []error
	for _, one := range list {
		if err := one.validate(); err != nil {
			errs = append(errs, err)
			continue
		}
		if _, twice := c.byID[one.ID()]; twice {
			errs = append(errs, fmt.Errorf("%s: %s is there twice", one.Identity, one.ID()))
		}
		c.byID[one.ID()] = one
	}
	return c, errors.Join(errs...)
}

// List gives them in their order.
func (c *Credentials) List() []Credential { return slices.Clone(c.list) }

// Login is what somebody shows who wants in.
type Login struct {
	NKey, Signature string // over Nonce
	Nonce           []byte
	User, Password  string
}

// Authenticate gives the credential that a login proves, or ErrDenied. A password takes it some 50 ms of a processor.
func (c *Credentials) Authenticate(l Login, now time.Time) (Credential, error) {
	id := l.NKey
	if id == "" {
		id = l.User
	}
	one, known := c.byID[id]
	switch {
	case id == "":
		return one, fmt.Errorf("no credential was shown: %w", ErrDenied)
	case !known || (one.NKey != "") != (l.NKey != ""):
		return one, fmt.Errorf("%.80q is not known: %w", id, ErrDenied)
	case !one.Expires.IsZero() && !now.Before(one.Expires):
		return one, fmt.Errorf("%s has expired at %s: %w", one.Identity, one.Expires.Format(time.RFC3339), ErrDenied)
	case one.NKey != "":
		return one, verify(one, l)
	case bcrypt.CompareHashAndPassword([]byte(one.Password), []byte(l.Password)) != nil:
		return one, fmt.Errorf("%s: wrong password: %w", one.Identity, ErrDenied)
	}
	return one, nil
}

func verify(c Credential, l Login) error {
	sig, err := base64.RawURLEncoding.DecodeString(l.Signature)
	if err != nil {
		sig, err = base64.StdEncoding.DecodeString(l.Signature) // of older clients
	}
	if err != nil || len(l.Nonce) == 0 {
		return fmt.Errorf("%s: no signature: %w", c.Identity, ErrDenied)
	}
	key, err := nkeys.FromPublicKey(c.NKey)
	if err != nil || key.Verify(l.Nonce, sig) != nil {
		return fmt.Errorf("%s: the signature is another's: %w", c.Identity, ErrDenied)
	}
	return nil
}

// Has tells whether there is a credential of that id.
func (c *Credentials) Has(id string) bool {
	_, there := c.byID[id]
	return there
}

// Same tells whether there is a credential as it was when it let somebody in.
func (c *Credentials) Same(one Credential) bool {
	now, there := c.byID[one.ID()]
	return there && now.Identity == one.Identity && now.Password == one.Password && now.Expires.Equal(one.Expires)
}

// Gone gives the ids of credentials that later does not have, or has otherwise.
func (c *Credentials) Gone(later *Credentials) map[string]bool {
	gone := map[string]bool{}
	for id, one := range c.byID {
		if !later.Same(one) {
			gone[id] = true
		}
	}
	return gone
}

// document is the file.
type document struct {
	Credentials []Credential `yaml:"credentials"`
}

// Read reads a file of credentials. It must be its owner's alone: who can write it is everybody, and who can read it can guess passwords.
func Read(name string) (*Credentials, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("credentials: %s can be read or written by others (mode %#o): chmod 600 %s", name, mode, name)
	}
	var d document
	dec := yaml.NewDecoder(f)
	dec.KnownFields(true)
	if err := dec.Decode(&d); err != nil && !errors.Is(err, io.EOF) { // an empty file lets nobody in
		return nil, fmt.Errorf("credentials: %s: %w", name, err)
	}
	c, err := New(d.Credentials)
	if err != nil {
		return nil, fmt.Errorf("credentials: %s: %w", name, err)
	}
	return c, nil
}

const header = "# Who may connect to Paddock's NATS server; see docs/nats.md. `paddock credential` changes it; servers notice within seconds.\n"

// Write writes a file of credentials, durably, in whole or not at all, for its owner alone.
func Write(name string, list []Credential) error {
	if _, err := New(list); err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	b := bytes.NewBufferString(header)
	e := yaml.NewEncoder(b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(document{list}), e.Close()); err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-") // mode 0600
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	defer os.Remove(tmp.Name()) // once it is renamed it is not there
	_, err = tmp.Write(b.Bytes())
	if err == nil {
		err = keepOwner(tmp.Name(), name)
	}
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), name)
	}
	if err == nil {
		err = syncDir(filepath.Dir(name)) // else a credential that is gone might be back after a loss of power
	}
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	return nil
}

// syncDir makes a directory's entries durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Change reads the file, which need not be there, and writes what change makes of it. Two at once are kept apart by a lock.
func Change(name string, change func([]Credential) ([]Credential, error)) error {
	unlock, err := lock(name + ".lock")
	if err != nil {
		return fmt.Errorf("credentials: %w", err)
	}
	defer unlock()
	var list []Credential
	c, err := Read(name)
	switch {
	case err == nil:
		list = c.List()
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if list, err = change(list); err != nil {
		return err
	}
	return Write(name, list)
}
