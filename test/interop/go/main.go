// Workloads as others write them: go-spiffe's sources, mutual TLS and JWT-SVIDs, and an Envoy that asks for secrets. Each command
// prints JSON lines for the test that runs it; long ones end when their standard input does.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Longest that a command waits for the agent.
var patience = 20 * time.Second

type command func(ctx context.Context, socket string, args []string) error

var commands = map[string]command{
	"x509":         watchX509,
	"serve":        serve,
	"call":         callAgain,
	"jwt":          fetchJWT,
	"check":        checkJWT,
	"sds":          watchSecrets,
	"fetch-bundle": fetchBundle,
	"serve-bundle": serveBundle,
}

// stdout is one line for each value.
func say(value any) {
	if err := json.NewEncoder(os.Stdout).Encode(value); err != nil {
		os.Exit(1)
	}
}

func main() {
	socket := flag.String("socket", "", "the Workload API, as unix:///path")
	flag.DurationVar(&patience, "patience", patience, "longest wait for the agent")
	flag.Parse()
	run, known := commands[flag.Arg(0)]
	if !known || *socket == "" {
		fmt.Fprintln(os.Stderr, "usage: interop -socket unix:///path x509|serve|call|jwt|check|sds|fetch-bundle|serve-bundle …")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *socket, flag.Args()[1:]); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// untilStdinEnds is how the test says that it has seen enough.
func untilStdinEnds(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx
}
