// Lists latents and encodes a prompt, knowing nothing but the server's address, and a token in CROSSCOPE_TOKEN:
//   node ask.mjs 127.0.0.1:50051 demo
import grpc from "@grpc/grpc-js";
import reflection from "grpc-js-reflection-client";

const [address, crosscoder] = process.argv.slice(2);
const credentials = grpc.credentials.createInsecure();
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${process.env.CROSSCOPE_TOKEN}`);
const server = new reflection.GrpcReflection(address, credentials);

async function service(name) {
  const descriptor = await server.getDescriptorBySymbol(name, metadata);
  const found = descriptor.getPackageObject({ keepCase: true, enums: String, longs: Number });
  const Service = name.split(".").reduce((at, part) => at[part], found);
  const client = new Service(address, credentials);
  return (method, request) =>
    new Promise((resolve, reject) =>
      client[method](request, metadata, (error, reply) => (error ? reject(error) : resolve(reply))),
    );
}

const services = await server.listServices("*", metadata);
const latents = await service("crosscope.v1.Latents");
const prompts = await service("crosscope.v1.Prompts");
const page = await latents("ListLatents", { crosscoder, order_by: "-rel_norm", page_size: 3 });
const code = await prompts("Encode", { crosscoder, prompt: { text: "A question from another language." } });
const refusal = await prompts("Encode", { crosscoder, prompt: { text: "" } }).catch((error) => error);
console.log(
  JSON.stringify({
    services,
    latents: page.latents.map((latent) => [latent.id, latent.rel_norm, latent.latent_class]),
    pieces: code.tokens.pieces,
    num_active: code.code.latents.length,
    refusal: { code: refusal.code, details: refusal.details },
  }),
);
