package transfer

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestPing(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusUnauthorized) // which is an answer, too
	}))
	host := strings.TrimPrefix(srv.URL, "http://")
	c, err := New(Options{Attempts: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, ahead, err := c.Ping(context.Background(), host+"/app:1")
	if err != nil || got != host || ahead < 59*time.Minute || ahead > 61*time.Minute {
		t.Errorf("%s, %v, %v", got, ahead, err)
	}
	srv.Close()
	if _, _, err := c.Ping(context.Background(), host+"/app:1"); !errors.Is(err, ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	if got, _, err := c.Ping(context.Background(), "oci:/nowhere"); got != "" || err != nil {
		t.Errorf("an image on disk has the registry %q, %v", got, err)
	}
	if _, _, err := c.Ping(context.Background(), "NOT A REFERENCE"); err == nil {
		t.Error("no error")
	}
}
