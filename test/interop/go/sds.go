package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	auth "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// watchSecrets [resource…] asks as Envoy does, and asks again when a stream ended for a reason that may pass.
func watchSecrets(ctx context.Context, socket string, args []string) error {
	connection, err := grpc.NewClient(socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx = untilStdinEnds(ctx)
	for {
		if err := streamSecrets(ctx, connection, args); status.Code(err) != codes.Unavailable {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// streamSecrets acknowledges each answer and says what is in it.
func streamSecrets(ctx context.Context, connection *grpc.ClientConn, resources []string) error {
	stream, err := secret.NewSecretDiscoveryServiceClient(connection).StreamSecrets(ctx)
	if err != nil {
		return err
	}
	request := &discovery.DiscoveryRequest{
		Node:          &core.Node{Id: "interop", Cluster: "interop"},
		ResourceNames: resources,
		TypeUrl:       secretType,
	}
	for {
		if err := stream.Send(request); err != nil && err != io.EOF {
			return err
		}
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		said, err := readSecrets(response.Resources)
		if err != nil {
			return err
		}
		say(map[string]any{"version": response.VersionInfo, "typeUrl": response.TypeUrl, "secrets": said})
		request.VersionInfo, request.ResponseNonce = response.VersionInfo, response.Nonce
	}
}

func readSecrets(resources []*anypb.Any) (map[string]any, error) {
	said := map[string]any{}
	for _, resource := range resources {
		var found auth.Secret
		if err := resource.UnmarshalTo(&found); err != nil {
			return nil, err
		}
		value, err := readSecret(&found)
		if err != nil {
			return nil, fmt.Errorf("secret %q: %w", found.Name, err)
		}
		said[found.Name] = value
	}
	return said, nil
}

func readSecret(found *auth.Secret) (any, error) {
	switch kind := found.Type.(type) {
	case *auth.Secret_TlsCertificate:
		chain, key := kind.TlsCertificate.CertificateChain.GetInlineBytes(), kind.TlsCertificate.PrivateKey.GetInlineBytes()
		// refuses a key that is not of the certificate
		pair, err := tls.X509KeyPair(chain, key)
		if err != nil {
			return nil, err
		}
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			return nil, err
		}
		return map[string]any{"certificate": leaf.URIs[0].String(), "serial": fmt.Sprintf("%x", leaf.SerialNumber.Bytes())}, nil
	case *auth.Secret_ValidationContext:
		context := kind.ValidationContext
		said := map[string]any{"authorities": certificates(context.TrustedCa.GetInlineBytes())}
		if custom := context.CustomValidatorConfig; custom != nil {
			var spiffe auth.SPIFFECertValidatorConfig
			if err := custom.TypedConfig.UnmarshalTo(&spiffe); err != nil {
				return nil, err
			}
			domains := map[string]int{}
			for _, domain := range spiffe.TrustDomains {
				domains[domain.Name] = certificates(domain.TrustBundle.GetInlineBytes())
			}
			said["validator"], said["domains"] = custom.Name, domains
		}
		return said, nil
	default:
		return nil, fmt.Errorf("an unexpected kind %T", kind)
	}
}

func certificates(text []byte) int {
	count := 0
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		count++
	}
	return count
}
