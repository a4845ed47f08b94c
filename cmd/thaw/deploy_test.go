//go:build cloud

package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"thaw/internal/testpty"
)

// On a terminal deploy draws a line for each thing that it waits for, of a function
// that is made and of one that is changed; elsewhere it says nothing.
func TestDeployProgress(t *testing.T) {
	type now map[string]string
	making := func(reason string) now { return now{"State": "Pending", "StateReason": reason} }
	changing := func(reason string) now {
		return now{"State": "Active", "LastUpdateStatus": "InProgress", "LastUpdateStatusReason": reason}
	}
	ready := now{"State": "Active", "LastUpdateStatus": "Successful"}
	terminal := testpty.Open(t, 24, 80)
	file, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, c := range []struct {
		name, drawn string
		stderr      *os.File
		answers     []now
	}{
		{"made", "queued\nlayer 1 of 2; half\n", terminal.TTY, []now{making("queued"), making("layer 1 of 2\nhalf"), making("layer 1 of 2\nhalf"), ready}},
		{"changed", "queued\nlayer 2 of 2\n", terminal.TTY, []now{changing("queued"), changing("layer 2 of 2"), ready}},
		{"ready", "", terminal.TTY, []now{ready}},
		{"in a file", "", file, []now{making("queued"), ready}},
	} {
		t.Run(c.name, func(t *testing.T) {
			api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_ = json.NewEncoder(w).Encode(map[string]now{"Configuration": c.answers[0]})
				c.answers = c.answers[min(1, len(c.answers)-1):]
			}))
			defer api.Close()
			p := &platform{functions: lambda.New(lambda.Options{Region: "us-east-1", BaseEndpoint: aws.String(api.URL), Credentials: aws.AnonymousCredentials{}})}
			got, err := (&deployCmd{Name: "f"}).wait(t.Context(), p, &Globals{stderr: c.stderr})
			if err != nil || got.State != "Active" {
				t.Errorf("%+v, %v", got, err)
			}
			_, _ = c.stderr.WriteString("|")
			if c.stderr != terminal.TTY {
				return
			}
			if drawn := terminal.Await("|"); drawn != c.drawn {
				t.Errorf("drawn %q, want %q", drawn, c.drawn)
			}
		})
	}
	if said, err := os.ReadFile(file.Name()); err != nil || string(said) != "|" {
		t.Errorf("in a file: %q, %v", said, err)
	}
}
