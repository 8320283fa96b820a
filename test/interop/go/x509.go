package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/logger"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func newX509Source(ctx context.Context, socket string) (*workloadapi.X509Source, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(socket), workloadapi.WithLogger(logger.Writer(os.Stderr))))
}

// watchX509 says the SVID and what go-spiffe's own validator thinks of it, now and after each push.
func watchX509(ctx context.Context, socket string, _ []string) error {
	source, err := newX509Source(ctx, socket)
	if err != nil {
		return err
	}
	defer source.Close()
	ctx = untilStdinEnds(ctx)
	for {
		svid, err := source.GetX509SVID()
		if err != nil {
			return err
		}
		bundle, err := source.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		if err != nil {
			return err
		}
		verified, _, err := x509svid.Verify(svid.Certificates, bundle)
		if err != nil {
			return fmt.Errorf("go-spiffe refuses the SVID: %w", err)
		}
		leaf := svid.Certificates[0]
		say(map[string]any{
			"id":          svid.ID.String(),
			"verified":    verified.String(),
			"serial":      fmt.Sprintf("%x", leaf.SerialNumber.Bytes()),
			"notAfter":    leaf.NotAfter.Format(time.RFC3339),
			"hint":        svid.Hint,
			"authorities": len(bundle.X509Authorities()),
			"federated":   federated(ctx, socket),
		})
		if err := source.WaitUntilUpdated(ctx); err != nil {
			return err
		}
	}
}

// federated names the trust domains whose bundles the workload is given besides its own.
func federated(ctx context.Context, socket string) []string {
	names := []string{}
	x509, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(socket))
	if err != nil {
		return names
	}
	own := x509.DefaultSVID().ID.TrustDomain()
	for _, bundle := range x509.Bundles.Bundles() {
		if bundle.TrustDomain() != own {
			names = append(names, bundle.TrustDomain().Name())
		}
	}
	return names
}

// serve [allowed ID] answers HTTP over mutual TLS and says who it is; only the one ID gets in.
func serve(ctx context.Context, socket string, args []string) error {
	allowed, err := spiffeid.FromString(args[0])
	if err != nil {
		return err
	}
	source, err := newX509Source(ctx, socket)
	if err != nil {
		return err
	}
	defer source.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{
		ReadHeaderTimeout: patience,
		TLSConfig:         tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeID(allowed)),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			client, _ := x509svid.IDFromCert(r.TLS.PeerCertificates[0])
			_, _ = io.WriteString(w, client.String())
		}),
	}
	say(map[string]any{"url": "https://" + listener.Addr().String()})
	ctx = untilStdinEnds(ctx)
	go func() {
		<-ctx.Done()
		_ = server.Close()
	}()
	if err := server.ServeTLS(listener, "", ""); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// callAgain [url] [server ID] [times] makes one new connection for each call, and says how many of them failed and why. No times:
// until standard input ends, and meanwhile it says each new certificate that the server shows.
func callAgain(ctx context.Context, socket string, args []string) error {
	server, err := spiffeid.FromString(args[1])
	if err != nil {
		return err
	}
	var times int
	if _, err := fmt.Sscan(args[2], &times); err != nil {
		return err
	}
	source, err := newX509Source(ctx, socket)
	if err != nil {
		return err
	}
	defer source.Close()
	ctx = untilStdinEnds(ctx)
	seen := map[string]int{}
	failed, answer, why := 0, "", ""
	for i := 0; (times == 0 || i < times) && ctx.Err() == nil; i++ {
		serial, body, err := call(source, source, server, args[0])
		if err != nil {
			failed, why = failed+1, err.Error()
		} else {
			if seen[serial]++; seen[serial] == 1 && times == 0 {
				say(map[string]any{"serverSerial": serial})
			}
			answer = body
		}
		if times == 0 {
			time.Sleep(5 * time.Millisecond)
		}
	}
	calls := failed
	for _, n := range seen {
		calls += n
	}
	say(map[string]any{"calls": calls, "failed": failed, "why": why, "answer": answer, "serverSerials": len(seen)})
	return nil
}

func call(svid x509svid.Source, bundle x509bundle.Source, server spiffeid.ID, url string) (string, string, error) {
	config := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(server))
	config.MinVersion = tls.VersionTLS13
	client := http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	defer client.CloseIdleConnections()
	response, err := client.Get(url)
	if err != nil {
		return "", "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return fmt.Sprintf("%x", response.TLS.PeerCertificates[0].SerialNumber.Bytes()), string(body), err
}
