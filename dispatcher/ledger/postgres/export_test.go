package postgres

import (
	"context"

	"github.com/paddockvm/paddock/dispatcher/ledger/sqlstore"
)

// OpenCommitting is Open, and has commit called with what commits a transaction, each time.
func OpenCommitting(ctx context.Context, url string, commit func(do func() error) error) (*Store, error) {
	db, err := storage(ctx, url)
	if err != nil {
		return nil, err
	}
	connect := db.Connect
	db.Connect = func(ctx context.Context) (sqlstore.Conn, error) {
		c, err := connect(ctx)
		return committing{c, commit}, err
	}
	return sqlstore.Open(db), nil
}

type committing struct {
	sqlstore.Conn
	commit func(do func() error) error
}

func (c committing) Run(ctx context.Context, list []*sqlstore.Stmt) error {
	if len(list) != 1 || list[0].Query != `COMMIT` {
		return c.Conn.Run(ctx, list)
	}
	return c.commit(func() error { return c.Conn.Run(ctx, list) })
}
