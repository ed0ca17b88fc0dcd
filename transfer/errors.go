package transfer

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode"
)

// What callers branch on. Every other error is final and meant for a person.
var (
	// ErrNotFound says that the registry or the local image has no such
	// repository, tag, manifest or blob.
	ErrNotFound = errors.New("not found")

	// ErrUnauthorized says that the registry asks for other credentials, or
	// that a local file may not be read.
	ErrUnauthorized = errors.New("not authorized")

	// ErrUnavailable says that the registry could not be reached, or kept
	// failing until the attempts were used up; or that the local files are
	// away. The same call may succeed later.
	ErrUnavailable = errors.New("registry unavailable")
)

// statusError is an HTTP status that means failure.
type statusError struct {
	method string
	url    string // as safeURL gives it
	code   int
	detail string // the registry's own words
	hint   string // what the user can do
}

func (e *statusError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: %d %s", e.method, e.url, e.code, http.StatusText(e.code))
	if e.detail != "" {
		fmt.Fprintf(&b, " (%s)", e.detail)
	}
	if e.hint != "" {
		fmt.Fprintf(&b, "; %s", e.hint)
	}
	return b.String()
}

func (e *statusError) Is(target error) bool {
	switch e.code {
	case http.StatusUnauthorized, http.StatusForbidden:
		return target == ErrUnauthorized
	case http.StatusNotFound, http.StatusGone:
		return target == ErrNotFound
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return target == ErrUnavailable
	}
	return e.code >= 500 && target == ErrUnavailable
}

// newStatusError makes an error of an answer from the registry at host, or
// from where it redirected to. It closes the body. Only the registry's own
// words are quoted: a blob store likes to repeat the signature it was given.
func newStatusError(resp *http.Response, host string) *statusError {
	e := &statusError{method: resp.Request.Method, url: safeURL(resp.Request.URL), code: resp.StatusCode}
	e.hint = statusHint(e.code, host)
	if !sameHost(resp.Request.URL, host) {
		if e.code < 500 {
			e.hint = "the registry redirected to this address: check the clock of this machine and the registry's storage"
		}
		discard(resp)
		return e
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 8<<10)) // what came is good enough
	discard(resp)
	var answer struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &answer) == nil && len(answer.Errors) > 0 {
		e.detail = scrub(answer.Errors[0].Code + ": " + answer.Errors[0].Message)
	}
	return e
}

func statusHint(code int, host string) string {
	switch code {
	case http.StatusUnauthorized:
		return fmt.Sprintf("log in with \"docker login %s\"", host)
	case http.StatusForbidden:
		return fmt.Sprintf("log in with an account that may do this: \"docker login %s\"", host)
	case http.StatusNotFound:
		return "check the image's name and tag"
	case http.StatusRequestedRangeNotSatisfiable:
		return "the registry's blob is shorter than the manifest says"
	case http.StatusTooManyRequests:
		return "the registry limits requests: try again later, or log in"
	}
	if code >= 500 {
		return "the registry has a fault: try again later"
	}
	return ""
}

// sendError makes an error of a request that got no answer.
func sendError(req *http.Request, err error) error {
	if ctx := req.Context().Err(); ctx != nil {
		return fmt.Errorf("%s %s: %w", req.Method, safeURL(req.URL), ctx)
	}
	hint := fmt.Sprintf("check that %s is up and can be reached from here", req.URL.Host)
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &cert):
		hint = "if the certificate is right, give the file of the CA that signed it"
	case speaksPlainHTTP(err):
		hint = "the registry speaks plain HTTP, which must be allowed for it"
	}
	return fmt.Errorf("%s %s: %w: %w; %s", req.Method, safeURL(req.URL), ErrUnavailable, err, hint)
}

// speaksPlainHTTP reports whether a TLS handshake failed because the other
// side answered in HTTP.
func speaksPlainHTTP(err error) bool {
	var record tls.RecordHeaderError
	return errors.As(err, &record) && string(record.RecordHeader[:]) == "HTTP/"
}

// brokenError is an answer that ended early or contradicts itself. Asking
// again may help.
type brokenError struct{ err error }

func broken(format string, args ...any) error { return &brokenError{fmt.Errorf(format, args...)} }

func (e *brokenError) Error() string        { return e.err.Error() }
func (e *brokenError) Unwrap() error        { return e.err }
func (e *brokenError) Is(target error) bool { return target == ErrUnavailable }

// safeURL returns u without user, password, query and fragment, in which
// registries and blob stores put secrets.
func safeURL(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }

// scrub makes a server's words fit to be shown: one line of bounded length,
// with neither queries of addresses nor long opaque words, which may be secret.
func scrub(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	words := strings.Fields(s)
	for i, w := range words {
		if strings.Contains(w, "://") {
			words[i], _, _ = strings.Cut(w, "?")
		} else if len(w) > 40 && !strings.Contains(w, "sha256:") {
			words[i] = "[...]"
		}
	}
	s = strings.Join(words, " ")
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "..."
	}
	return s
}
