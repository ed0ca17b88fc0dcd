package transfer

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// renew gets credentials after the registry has refused those used, which may
// be none. It returns nil if there are no others. However many requests are
// refused at once, as when a token expires, the credentials are renewed once.
func (r *repo) renew(ctx context.Context, refused *http.Response, used *string) (*string, error) {
	if err := r.renewal.lock(ctx); err != nil {
		return nil, fmt.Errorf("log in to %s: %w", r.name, err)
	}
	defer r.renewal.unlock()
	if now := r.auth.Load(); now != used {
		return now, nil // another request was first
	}
	// The keychain is asked each time: what a credential helper gives may
	// have expired, too.
	auth, err := authn.Resolve(ctx, r.c.opts.Keychain, r.name)
	if err != nil {
		return nil, fmt.Errorf("find credentials for %s: %w", r.name, err)
	}
	cfg, err := authn.Authorization(ctx, auth)
	if err != nil {
		return nil, fmt.Errorf("find credentials for %s: %w", r.name, err)
	}
	fresh, err := r.authorization(charge(For(ctx, "token"), r.host, ""), refused, auth, cfg)
	if err != nil || fresh == "" || used != nil && fresh == *used {
		return nil, err
	}
	r.c.opts.Log.Debug("logged in", "repository", r.name.Name())
	r.auth.Store(&fresh)
	return &fresh, nil
}

// authorization returns the Authorization header that answers the refusal, or
// "" if no credentials are known.
func (r *repo) authorization(ctx context.Context, refused *http.Response, auth authn.Authenticator, cfg *authn.AuthConfig) (string, error) {
	// The refusal is as good as the answer to the ping that go-containerregistry
	// would send to learn how to log in.
	challenge, err := transport.Ping(ctx, r.name.Registry, answered{refused})
	if err != nil {
		return "", fmt.Errorf("read the challenge of %s: %w", r.host, err)
	}
	switch strings.ToLower(challenge.Scheme) {
	case "basic":
		switch {
		case cfg.Username != "" || cfg.Password != "":
			return "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.Username+":"+cfg.Password)), nil
		case cfg.Auth != "":
			return "Basic " + cfg.Auth, nil
		}
	case "bearer":
		if cfg.RegistryToken != "" {
			return "Bearer " + cfg.RegistryToken, nil
		}
		scope := []string{r.name.Scope(r.action)}
		tok, err := transport.Exchange(ctx, r.name.Registry, auth, r.c.retry, scope, challenge)
		if err != nil {
			return "", r.exchangeError(ctx, err)
		}
		if tok.AccessToken != "" {
			return "Bearer " + tok.AccessToken, nil
		}
		return "Bearer " + tok.Token, nil
	}
	return "", nil
}

// exchangeError makes an error of a failed token exchange, without the token
// server's answer, which may hold a token.
func (r *repo) exchangeError(ctx context.Context, err error) error {
	var status *transport.Error
	var send *url.Error
	var syntax *json.SyntaxError
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.As(err, &status):
		e := &statusError{method: http.MethodGet, url: "token server", code: status.StatusCode, hint: statusHint(status.StatusCode, r.host)}
		if status.Request != nil {
			e.method, e.url = status.Request.Method, safeURL(status.Request.URL)
		}
		if len(status.Errors) > 0 {
			e.detail = scrub(string(status.Errors[0].Code) + ": " + status.Errors[0].Message)
		}
		err = e
	case errors.As(err, &send):
		err = fmt.Errorf("%w: %w", ErrUnavailable, send.Err)
	case errors.As(err, &syntax):
		err = errors.New("the token server's answer is not JSON")
	default:
		first, _, _ := strings.Cut(err.Error(), "\n") // the answer comes after it
		err = errors.New(scrub(first))
	}
	return fmt.Errorf("get a token for %s: %w", r.name, err)
}

// answered is a registry that has given its answer before.
type answered struct{ resp *http.Response }

func (a answered) RoundTrip(*http.Request) (*http.Response, error) {
	resp := *a.resp
	resp.Body = http.NoBody
	return &resp, nil
}
