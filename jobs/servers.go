package jobs

import (
	"errors"
	"net/url"
	"strings"
)

// Servers gives the URLs of NATS servers, with commas between them, as they may be shown and logged: without the names, passwords and tokens that
// let in there. Its error repeats nothing of a URL that cannot be read.
func Servers(urls string) (string, error) {
	list := strings.Split(urls, ",")
	for i, one := range list {
		one = strings.TrimSpace(one)
		if one != "" && !strings.Contains(one, "://") { // as nats.go reads it
			one = "nats://" + one
		}
		u, err := url.Parse(one)
		if err != nil {
			return "", errors.New("the URL of a NATS server cannot be read; want nats://HOST:PORT")
		}
		if list[i] = one; u.User != nil {
			u.User = nil
			list[i] = u.String()
		}
	}
	return strings.Join(list, ","), nil
}
